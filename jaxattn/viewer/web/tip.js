/* The one tooltip, and what is read aloud where there is no pointer. */

function showTip(x, y, ...content) {
  const tip = byId("tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
  const top = y + 16 + box.height > innerHeight ? y - 16 - box.height : y + 16;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, top)}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

let announcing = 0;

/** Says the tooltip's text to a screen reader, when the keys have come to rest. */
function announce(text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => { byId("announce").textContent = text; }, 150);
}
