/* What Python put into the page: a description, and packed arrays that are unpacked when needed. */

const description = JSON.parse(document.getElementById("description").textContent);

const KINDS = { u1: Uint8Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array };
const unpacked = new Map();

function bytesOfBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** The bytes of numbers whose first bytes come first, then all second ones, and so on. */
function interleaved(planes, size) {
  if (size === 1) return planes;
  const count = planes.length / size;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < size; plane++) {
    for (let i = 0, at = plane, from = plane * count; i < count; i++, at += size) bytes[at] = planes[from + i];
  }
  return bytes;
}

/** An array by name, as one flat typed array. */
function unpack(name) {
  if (!unpacked.has(name)) unpacked.set(name, unpackNow(name));
  return unpacked.get(name);
}

async function unpackNow(name) {
  const kind = KINDS[description.arrays[name].kind];
  const packed = bytesOfBase64(document.getElementById(name).textContent);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  return new kind(interleaved(planes, kind.BYTES_PER_ELEMENT).buffer);
}
