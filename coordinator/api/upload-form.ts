/**
 * The form of POST /v1/files (multipart/form-data): the file goes to disk as it comes, whatever order its fields
 * have; they decide at the end whether it stays.
 */
import type { Multipart, MultipartFile } from "@fastify/multipart";
import type { FastifyRequest } from "fastify";
import { RelayError } from "../../common/errors.js";
import { expirySeconds, type FilePurpose, maxFilenameLength } from "../files/file.js";
import type { FileStore } from "../files/store.js";
import type { Upload } from "../files/upload.js";
import { Arrival } from "./arrival.js";
import { type JsonSchema, show } from "./fields.js";
import { maxFormBytes, maxFormFields, maxFormValueBytes } from "./limits.js";

/** What clients may upload: the other purposes are for what the coordinator writes itself. */
const uploadPurpose = "batch" satisfies FilePurpose;
/** Of a file whose client gave none. */
const defaultFilename = "file";

export const uploadSchema: JsonSchema = {
  type: "object",
  required: ["file", "purpose"],
  properties: {
    file: { type: "string", format: "binary" },
    purpose: { type: "string", enum: [uploadPurpose] },
    "expires_after[anchor]": { type: "string", enum: ["created_at"] },
    "expires_after[seconds]": { type: "integer", minimum: expirySeconds.min, maximum: expirySeconds.max },
  },
};

const knownFields: ReadonlySet<string> = new Set(Object.keys(uploadSchema["properties"] as object));

/** What a form said, and the file that came with it: on the disk, and not yet kept. */
export interface ReceivedForm {
  upload: Upload;
  filename: string;
  expiresAfterS: number | null;
  /** Names of fields that nobody knows. */
  unknown: string[];
}

/**
 * Reads the whole form.
 * @param strict Unknown fields are errors.
 * @throws RelayError what is wrong with it; nothing is left of its file then, and the body may not have been read whole.
 */
export async function receiveForm(
  request: FastifyRequest,
  store: FileStore,
  stallMs: number,
  strict: boolean,
): Promise<ReceivedForm> {
  const arrival = new Arrival(request.raw, {
    stallMs,
    maxBytes: store.maxBytes + maxFormBytes,
    tooLarge: () => fileTooLarge(store.maxBytes),
  });
  const form = new Form(store, arrival, strict);
  try {
    return await form.read(request);
  } catch (error) {
    await form.upload?.discard();
    throw error;
  } finally {
    arrival.end();
  }
}

export function fileTooLarge(maxBytes: number): RelayError {
  return new RelayError("request_too_large", `file: larger than ${maxBytes} bytes`, { param: "file" });
}

class Form {
  upload: Upload | null = null;
  #filename = "";
  readonly #fields = new Map<string, string>();

  constructor(
    private readonly store: FileStore,
    private readonly arrival: Arrival,
    private readonly strict: boolean,
  ) {}

  async read(request: FastifyRequest): Promise<ReceivedForm> {
    const limits = {
      fields: maxFormFields,
      fieldSize: maxFormValueBytes,
      fileSize: Number.POSITIVE_INFINITY,
    };
    const parts = request.parts({ limits });
    // Reading begins with the first call.
    let next = parts.next();
    this.arrival.begin();
    for (;;) {
      const { value: part, done } = await this.arrival.during(next.catch(throwFormError));
      if (done === true) return this.#finish();
      if (part.type === "file") await this.#readFile(part);
      else this.#readField(part);
      next = parts.next();
    }
  }

  async #readFile(part: MultipartFile): Promise<void> {
    try {
      this.#takeFile(part);
      this.upload = await this.store.begin();
      this.arrival.interruptWith((error) => part.file.destroy(error));
      for await (const chunk of chunksOf(part)) {
        if (this.upload.bytes + chunk.length > this.store.maxBytes) throw fileTooLarge(this.store.maxBytes);
        await this.arrival.working(this.upload.write(chunk));
      }
    } catch (error) {
      part.file.destroy();
      throw error;
    } finally {
      this.arrival.interruptWith(null);
    }
  }

  #takeFile({ fieldname, filename = "" }: MultipartFile): void {
    if (fieldname !== "file") {
      throw refused(fieldname, "is a file", "one file, in the field file");
    }
    if (this.upload !== null) throw refused("file", "given twice", "one file");
    if (filename.length > maxFilenameLength) {
      throw refused("file", `a name of ${filename.length} characters`, `at most ${maxFilenameLength}`);
    }
    this.#filename = filename === "" ? defaultFilename : filename;
  }

  #readField({ fieldname, value, fieldnameTruncated, valueTruncated }: FieldPart): void {
    if (fieldname === "file")
      throw refused("file", "has no file name", "the content of a file, with its name");
    if (fieldnameTruncated) throw refused(fieldname, "a name that is too long", "purpose or expires_after");
    if (valueTruncated) throw refused(fieldname, "too long", `at most ${maxFormValueBytes} bytes`);
    if (this.#fields.has(fieldname)) throw refused(fieldname, "given twice", "one value");
    if (this.strict && !knownFields.has(fieldname)) {
      throw new RelayError(
        "invalid_value",
        `${show(fieldname)} is not a field of this endpoint (X-GLM-Strict is 1)`,
        { param: fieldname },
      );
    }
    this.#fields.set(fieldname, typeof value === "string" ? value : JSON.stringify(value));
    // What is known to be refused need not come whole.
    if (fieldname === "purpose") this.#requirePurpose();
  }

  #finish(): ReceivedForm {
    if (this.upload === null) throw refused("file", "missing", "the content of a file, with its name");
    this.#requirePurpose();
    return {
      upload: this.upload,
      filename: this.#filename,
      expiresAfterS: this.#expiresAfterS(),
      unknown: [...this.#fields.keys()].filter((name) => !knownFields.has(name)),
    };
  }

  #requirePurpose(): void {
    const purpose = this.#fields.get("purpose");
    if (purpose === uploadPurpose) return;
    throw refused("purpose", purpose === undefined ? "missing" : show(purpose), uploadPurpose);
  }

  #expiresAfterS(): number | null {
    const anchor = this.#fields.get("expires_after[anchor]");
    const seconds = this.#fields.get("expires_after[seconds]");
    if (anchor === undefined && seconds === undefined) return null;
    if (anchor !== "created_at") {
      throw refused("expires_after[anchor]", anchor === undefined ? "missing" : show(anchor), "created_at");
    }
    const { min, max } = expirySeconds;
    const value = /^\d{1,9}$/.test(seconds ?? "") ? Number(seconds) : Number.NaN;
    if (value >= min && value <= max) return value;
    const fault = seconds === undefined ? "missing" : `${show(seconds)} is not valid`;
    throw refused("expires_after[seconds]", fault, `an integer from ${min} to ${max}`);
  }
}

type FieldPart = Extract<Multipart, { type: "field" }>;

async function* chunksOf(part: MultipartFile): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of part.file) yield chunk as Buffer;
  } catch (error) {
    throwFormError(error);
  }
}

/** What the form's reader says, in our words: it meets nothing but what the client sent. */
function throwFormError(error: unknown): never {
  if (error instanceof RelayError) throw error;
  const { code, message } = error as { code?: unknown; message: string };
  if (code === "FST_MP_PREMATURE_CLOSE") {
    throw new RelayError("cancelled", "the client left while its upload was being read", { cause: error });
  }
  throw new RelayError("invalid_value", `body: ${message}, expected a form of type multipart/form-data`, {
    param: "body",
    cause: error,
  });
}

function refused(param: string, fault: string, expected: string): RelayError {
  return new RelayError("invalid_value", `${param}: ${fault}, expected ${expected}`, { param });
}
