/** What the door refuses of slices, and that a refused slice changes nothing. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type SliceInput, Stage } from "../../native/index.js";
import {
  randomModel,
  rows,
  stageConfig,
  type Tensors,
  TINY,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const folder = temporaryFolder();
let tensors: Tensors;
beforeAll(() => {
  tensors = writeTensors(`${folder.path}/model.bin`, randomModel(TINY, "float32", 1));
});
afterAll(() => folder.remove());

const options = { maxRows: 8, contextRows: 6 };
const context = (length: number) => ({ ...rows(0, length, [0]), contextLength: length });
const ids = (length: number) => new Int32Array(length);
const first = (changes: Partial<SliceInput> = {}): SliceInput => ({
  rows: context(4),
  layerBegin: 0,
  layerEnd: 1,
  tokenIds: ids(4),
  activations: null,
  ...changes,
});
const later = (changes: Partial<SliceInput> = {}): SliceInput =>
  first({ tokenIds: null, layerBegin: 1, layerEnd: 2, ...changes });
const only = (slice: SliceInput) => ({ ...tokenStep([], []), tokenIds: null, slice });
/** Layers [2, 4): the last stage. */
const arriving = (changes: Partial<SliceInput> = {}): SliceInput =>
  later({ layerBegin: 2, layerEnd: 2, activations: new Uint8Array(4 * 32 * 4), ...changes });

test.each<[string, SliceInput, string]>([
  ["more rows than planned", first({ rows: context(7), tokenIds: ids(7) }), "slice.rows.rowCount 7"],
  ["a part of a context", first({ rows: { ...context(4), contextLength: 5 } }), "expected the context's"],
  ["no layers", first({ layerEnd: 0 }), "slice.layerEnd 0: expected an integer from 1 to 2"],
  ["layers of the next stage", first({ layerEnd: 3 }), "slice.layerEnd 3: expected an integer from 1 to 2"],
  ["layers of the next stage only", later({ layerBegin: 2, layerEnd: 3 }), "slice.layerBegin 2"],
  ["too few ids", first({ tokenIds: ids(3) }), "slice.tokenIds: 3 ids for 4 rows"],
  ["an unknown id", first({ tokenIds: Int32Array.of(0, 0, 5, 0) }), "slice.tokenIds[2]: token 5"],
  ["ids in the middle", first({ layerBegin: 1, layerEnd: 2 }), "new rows come at layer 0, not 1"],
  ["nothing to go on with", later(), "goes on with 4 rows at layer 1, but none are parked"],
  ["activations", first({ activations: new Uint8Array(512) }), "the first stage takes tokenIds"],
])("the first stage refuses %s", async (_, slice, message) => {
  const stage = await Stage.create(stageConfig(tensors, TINY, 0, 2, options));
  await expect(stage.step(only(slice))).rejects.toThrow(message);
  await stage.step(only(first()));
  await stage.close();
});

test("a slice goes on where the last one ended, with as many rows", async () => {
  const stage = await Stage.create(stageConfig(tensors, TINY, 0, 2, options));
  expect((await stage.step(only(first()))).sliceActivations).toBeNull();
  await expect(stage.step(only(later({ rows: context(3) })))).rejects.toThrow("but 4 wait at layer 1");
  const { activations, sliceActivations } = await stage.step(only(later()));
  expect([activations, sliceActivations!.byteLength]).toEqual([null, 4 * 32 * 4]);
  await expect(stage.step(only(later()))).rejects.toThrow("but none are parked");
  await stage.close();
});

test.each<[string, SliceInput, string]>([
  ["ids", first({ layerBegin: 2, layerEnd: 3 }), "a later stage takes activations and no tokenIds"],
  ["too few bytes", arriving({ activations: new Uint8Array(8) }), "slice.activations: 8 bytes; expected 512"],
  [
    "rows behind its first layer",
    arriving({ layerBegin: 3, layerEnd: 3 }),
    "new rows come at layer 2, not 3",
  ],
])("a later stage refuses %s", async (_, slice, message) => {
  const stage = await Stage.create(stageConfig(tensors, TINY, 2, 4, options));
  await expect(stage.step(only(slice))).rejects.toThrow(message);
  await stage.step(only(arriving()));
  const { sliceActivations } = await stage.step(only(later({ layerBegin: 2, layerEnd: 4 })));
  expect(sliceActivations).toBeNull();
  await stage.close();
});

test("a step without rows needs a slice, and content needs rows", async () => {
  const stage = await Stage.create(stageConfig(tensors, TINY, 0, 2, options));
  await expect(stage.step({ ...tokenStep([], []), tokenIds: null })).rejects.toThrow("or a slice");
  await expect(stage.step({ ...tokenStep([], []), slice: first() })).rejects.toThrow(
    "without rows takes neither",
  );
  await stage.close();
});

test("a stage has room for contexts only as far as for rows", async () => {
  const config = stageConfig(tensors, TINY, 0, 2, { maxRows: 8, contextRows: 9 });
  await expect(Stage.create(config)).rejects.toThrow("contextRows 9: expected an integer from 0 to 8");
});
