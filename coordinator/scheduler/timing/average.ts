/** Of a young average a sample may turn out to have been the exception. */
const youngSamples = 4;
/** A sample so many times the average (or its inverse) was disturbed: it counts as that much. */
const outlierRatio = 3;

/**
 * A running mean that outliers do not carry away.
 * @param samples In the mean, with this one: its weight is the inverse, so a bound on it makes the mean forget.
 */
export function averaged(mean: number, sample: number, samples: number): number {
  if (samples <= youngSamples && sample * outlierRatio < mean) return sample;
  const kept = Math.min(Math.max(sample, mean / outlierRatio), Math.max(mean, 1) * outlierRatio);
  return mean + (kept - mean) / samples;
}
