// [WCAG contrast, element, text] of every shown text, and of every field, against the nearest opaque ground under it.
const KINDS = 'h1,h2,h3,p,li,td,th,figcaption,caption,dt,dd,summary,mark,span,small,strong,button,label,input,select,svg text';

function channels(colour) {
  const parts = colour.match(/[\d.]+/g).map(Number);
  return parts.length > 3 && parts[3] === 0 ? null : parts.slice(0, 3);
}

function luminance(colour) {
  const [r, g, b] = colour.map(c => c / 255).map(c => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function ground(element) {
  for (let e = element; e; e = e.parentElement) {
    const colour = channels(getComputedStyle(e).backgroundColor);
    if (colour) return colour;
  }
  return [255, 255, 255];
}

return [...document.querySelectorAll(KINDS)]
  .filter(e => (e.textContent.trim() || e.tagName === 'INPUT') && e.getClientRects().length)
  .map(e => {
    const drawn = e instanceof SVGElement;
    const text = channels(drawn ? getComputedStyle(e).fill : getComputedStyle(e).color);
    const [high, low] = [luminance(text), luminance(ground(drawn ? e.closest('figure') : e))].sort((x, y) => y - x);
    return [(high + 0.05) / (low + 0.05), e.tagName, e.textContent.trim().slice(0, 40)];
  });
