/** Where webhooks may go: a client names the URL, so whoever runs the coordinator names the hosts. */

export const webhookUrlLengthMax = 2_048;
/** Entries of --webhook-hosts. */
export const webhookHostsMax = 64;
const anyHost = "*";

export class WebhookHosts {
  readonly #any: boolean;
  readonly #hosts: ReadonlySet<string>;

  /** @param hosts Of isWebhookHost each: `name` allows all its ports, `name:port` one, `*` every host. */
  constructor(readonly hosts: readonly string[]) {
    this.#any = hosts.includes(anyHost);
    this.#hosts = new Set(hosts.map((host) => host.toLowerCase()));
  }

  /** Webhooks are off. */
  get none(): boolean {
    return this.#hosts.size === 0;
  }

  /** Why no webhook may go there, for the client; null when one may. */
  refuse(url: string): string | null {
    if (this.none) {
      return "webhooks are off here: the coordinator was started without --webhook-hosts";
    }
    if (url.length > webhookUrlLengthMax) {
      return `${url.length} characters, expected at most ${webhookUrlLengthMax}`;
    }
    const parsed = parseUrl(url);
    if (parsed === null || !["http:", "https:"].includes(parsed.protocol)) {
      return "not a URL, expected one that begins with http:// or https://";
    }
    if (parsed.username !== "" || parsed.password !== "") {
      return "it holds a user name or a password, expected a URL without";
    }
    if (this.#any || this.#hosts.has(parsed.hostname) || this.#hosts.has(hostAndPort(parsed))) return null;
    return `${JSON.stringify(parsed.host.slice(0, 100))} is not one of this coordinator's --webhook-hosts`;
  }
}

/** Whether a word is `*`, a host or `host:port`; an IPv6 address stands in brackets. */
export function isWebhookHost(word: string): boolean {
  if (word === anyHost) return true;
  // Some of a domain's hosts are not to be had: a URL would take the star for a letter.
  if (word.includes(anyHost)) return false;
  const parsed = parseUrl(`http://${word}`);
  if (parsed === null || parsed.pathname !== "/") return false;
  const lower = word.toLowerCase();
  // A port that is the default one does not stand in `host`.
  return lower === parsed.host || lower === hostAndPort(parsed);
}

function parseUrl(text: string): URL | null {
  return URL.canParse(text) ? new URL(text) : null;
}

function hostAndPort({ protocol, hostname, port }: URL): string {
  return `${hostname}:${port === "" ? (protocol === "https:" ? 443 : 80) : port}`;
}
