/** Python's strftime in English, as far as chat templates use it. What is not known stays as it is. */

const months = "January February March April May June July August September October November December".split(
  " ",
);
const days = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split(" ");

/** The date in the time zone of this machine, as Python's datetime.now() has it. */
export function strftime(date: Date, format: string): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const month = months[date.getMonth()]!;
  const day = days[date.getDay()]!;
  const forms: Record<string, string> = {
    "%Y": String(date.getFullYear()),
    "%y": two(date.getFullYear() % 100),
    "%m": two(date.getMonth() + 1),
    "%d": two(date.getDate()),
    "%H": two(date.getHours()),
    "%I": two(date.getHours() % 12 || 12),
    "%p": date.getHours() < 12 ? "AM" : "PM",
    "%M": two(date.getMinutes()),
    "%S": two(date.getSeconds()),
    "%B": month,
    "%b": month.slice(0, 3),
    "%A": day,
    "%a": day.slice(0, 3),
    "%%": "%",
  };
  return format.replace(/%[A-Za-z%]/g, (form) => forms[form] ?? form);
}
