"use strict";
// The tree as a file: the SVG that is drawn, whole, or a PNG of it.

function saveTree(view, kind) {
  const entry = view.entries[view.place];
  const measure = MEASURES[view.measure];
  const caption = `${entry.source} · coloured by ${measure.name} from ${shown(view.range.low, 2)} (orange or pale) to ${shown(view.range.high, 2)} (blue) · purple: forks, with their round`;
  const [text, width, height] = view.drawing.picture(caption);
  const give = (blob, ending) => {
    const link = make("a");
    link.href = URL.createObjectURL(blob);
    link.download = `tree_${entry.block}.${ending}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const svg = new Blob([text], { type: "image/svg+xml" });
  if (kind === "svg") return give(svg, "svg");
  const image = new Image();
  image.onload = () => {
    const canvas = make("canvas");
    const scale = Math.min(2, 16000 / Math.max(width, height));
    [canvas.width, canvas.height] = [width * scale, height * scale];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => give(blob, "png"));
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
}
