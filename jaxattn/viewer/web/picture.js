/* Two pens that draw the same: on a canvas, and as SVG. So what is saved is what is seen. */

const measuring = document.createElement("canvas").getContext("2d");

function textWidth(text, size) {
  measuring.font = `${size}px ${variable("--sans")}`;
  return measuring.measureText(text).width;
}

class CanvasPen {
  constructor(context) {
    this.context = context;
    this.family = variable("--sans");
  }

  rect(x, y, width, height, colour) {
    this.context.fillStyle = colour;
    this.context.fillRect(x, y, width, height);
  }

  outline(x, y, width, height, colour, thickness = 1) {
    this.context.strokeStyle = colour;
    this.context.lineWidth = thickness;
    this.context.strokeRect(x, y, width, height);
  }

  line(points, colour, thickness = 1) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
  }

  /** align: start, middle or end. angle: in degrees, about the point. */
  text(x, y, text, { size = 11, colour, align = "start", angle = 0, bold = false } = {}) {
    const { context } = this;
    context.save();
    context.translate(x, y);
    context.rotate((angle * Math.PI) / 180);
    context.direction = "ltr";
    context.font = `${bold ? "600 " : ""}${size}px ${this.family}`;
    context.textAlign = { start: "left", middle: "center", end: "right" }[align];
    context.textBaseline = "middle";
    context.fillStyle = colour;
    context.fillText(text, 0, 0);
    context.restore();
  }

  image(source, x, y, width, height, smooth = false) {
    this.context.imageSmoothingEnabled = smooth;
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(source, x, y, width, height);
  }
}

const escapeXml = (text) => text
  .toWellFormed()
  .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd")
  .replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const short = (x) => String(Math.round(x * 100) / 100);

class SvgPen {
  constructor(width, height) {
    this.size = [width, height];
    this.parts = [];
  }

  rect(x, y, width, height, colour) {
    this.parts.push(`<rect x="${short(x)}" y="${short(y)}" width="${short(width)}" height="${short(height)}" fill="${colour}"/>`);
  }

  outline(x, y, width, height, colour, thickness = 1) {
    this.parts.push(`<rect x="${short(x)}" y="${short(y)}" width="${short(width)}" height="${short(height)}" fill="none" stroke="${colour}" stroke-width="${thickness}"/>`);
  }

  line(points, colour, thickness = 1) {
    const path = points.map(([x, y]) => `${short(x)},${short(y)}`).join(" ");
    this.parts.push(`<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="${thickness}"/>`);
  }

  text(x, y, text, { size = 11, colour, align = "start", angle = 0, bold = false } = {}) {
    const turn = angle ? ` transform="rotate(${angle} ${short(x)} ${short(y)})"` : "";
    const weight = bold ? ' font-weight="600"' : "";
    this.parts.push(`<text x="${short(x)}" y="${short(y)}" font-size="${size}"${weight} fill="${colour}" text-anchor="${align}" dominant-baseline="central"${turn}>${escapeXml(text)}</text>`);
  }

  image(source, x, y, width, height, smooth = false) {
    const rendering = smooth ? "" : ' style="image-rendering:pixelated"';
    this.parts.push(`<image x="${short(x)}" y="${short(y)}" width="${short(width)}" height="${short(height)}" preserveAspectRatio="none"${rendering} href="${source.toDataURL("image/png")}"/>`);
  }

  get svg() {
    const [width, height] = this.size.map(short);
    const family = escapeXml(variable("--sans"));
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="${family}">${this.parts.join("")}</svg>`;
  }
}

/** A box that can be seen on any colour: the accent between two lines of the page's own. */
function haloed(pen, [x, y, width, height], accent) {
  pen.outline(x + 1, y + 1, width - 2, height - 2, variable("--paper"), 3);
  pen.outline(x + 1, y + 1, width - 2, height - 2, accent, 1.5);
}

/** The cells of a head as a small picture, one pixel each. */
function pixelsOfHead(reading, layer, head, table, canvas = document.createElement("canvas")) {
  [canvas.width, canvas.height] = [reading.columns, reading.rows];
  const context = canvas.getContext("2d");
  const image = context.createImageData(reading.columns, reading.rows);
  const pixels = new Uint32Array(image.data.buffer);
  const codes = reading.codes(layer, head);
  for (let i = 0; i < codes.length; i++) pixels[i] = table[codes[i]];
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The colours of all weights, with what they stand for. */
function paintLegend(pen, width, { most, scale }) {
  const [soft, bar] = [variable("--soft"), Math.min(width - 70, 250)];
  for (let x = 0; x < bar; x++) pen.rect(x, 0, 1.5, 12, css(viridisAt(x / (bar - 1))));
  const first = scale === "log" ? `\u2264 ${tick(fromScale(0, scale, most))}` : "0";
  pen.text(0, 25, first, { colour: soft });
  for (const place of scale === "log" ? [1 / 3, 2 / 3] : [0.5]) {
    pen.text(bar * place, 25, tick(fromScale(place, scale, most)), { colour: soft, align: "middle" });
  }
  pen.text(bar, 25, tick(most), { colour: soft, align: "end" });
  pen.rect(bar + 14, 0, 12, 12, css(colourOfWeight(null)));
  pen.text(bar + 31, 6.5, "hidden", { colour: soft });
}

function drawLegend() {
  const canvas = byId("legend");
  const width = canvas.clientWidth;
  const context = sized(canvas, width, 38);
  context.clearRect(0, 0, width, 38);
  const most = mostWeight();
  paintLegend(new CanvasPen(context), width, { most, scale: state.scale });
  canvas.setAttribute("aria-label",
    `Colours of weights, ${SCALES[state.scale]}, from ${shortNumber(fromScale(0, state.scale, most))} in dark blue to ${shortNumber(most)} in yellow; hidden pairs are grey`);
}
