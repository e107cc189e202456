/* Pictures to save: the same drawing, by the other pen. */

const SHARPNESS = 3; // pixels of a PNG for each of the page

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Draws by paint(pen) into a file of a kind. */
function savePicture(kind, name, { width, height }, paint) {
  if (kind === "svg") {
    const pen = new SvgPen(width, height);
    paint(pen);
    return save(new Blob([pen.svg], { type: "image/svg+xml" }), `${name}.svg`);
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.round(width * SHARPNESS), Math.round(height * SHARPNESS)];
  const context = canvas.getContext("2d");
  context.scale(SHARPNESS, SHARPNESS);
  paint(new CanvasPen(context));
  canvas.toBlob((blob) => save(blob, `${name}.png`), "image/png");
}

async function saveMap(reading, kind) {
  const { layer, head } = state;
  await reading.loadLayer(layer);
  const at = layoutOfMap(reading, 720);
  const used = { ...at, width: at.left + at.mapWidth + MARGIN.gap + MARGIN.entropy + 8, height: at.height + 76 };
  savePicture(kind, `attention-${layer}.${head}`, used, (pen) => {
    pen.rect(0, 0, used.width, used.height, variable("--paper"));
    const below = Object.create(pen);
    const shift = 30;
    below.rect = (x, y, ...rest) => pen.rect(x, y + shift, ...rest);
    below.line = (points, ...rest) => pen.line(points.map(([x, y]) => [x, y + shift]), ...rest);
    below.text = (x, y, ...rest) => pen.text(x, y + shift, ...rest);
    below.image = (source, x, y, ...rest) => pen.image(source, x, y + shift, ...rest);
    paintMap(below, reading, layer, head, { ...at, width: used.width });
    const title = [reading.title, headName(layer, head), ...reading.names[layer][head]].filter(Boolean).join(" \u00b7 ");
    pen.text(12, 17, cut(title, 80), { size: 13, colour: variable("--ink"), bold: true });
    paintLegendAt(pen, at.left, at.height + shift + 8);
  });
}

function saveGrid(reading, kind) {
  const layout = layoutOfGrid(reading);
  savePicture(kind, "attention-heads", layout, (pen) => paintGrid(pen, reading, layout));
}

const saveButtons = (what, act) => make("div", { class: "tools" }, ...["PNG", "SVG"].map((kind) => make("button", {
  type: "button", "aria-label": `Save ${what} as ${kind}`, onclick: () => act(kind.toLowerCase()),
}, kind)));
