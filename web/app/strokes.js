// Pen strokes to the 8x8 image that the digits network reads. The same steps as
// examples/digits/strokes.py, which explains them and which the network was trained with; a test
// compares the two. Pure arithmetic: no canvas, so every browser gives the same pixels.

/** @typedef {[number, number]} Point x, y downwards, in any unit */

const GRID = 32;
const BOX_WIDTH = 25;
const BOX_HEIGHT = 31;
// Pixels of the 32x32 grid that a digit's ink covers, and the widths a pen may have.
const INK = 19.5 * 16;
const PEN_MIN = 3.2;
const PEN_MAX = 9;

/**
 * @param {Point[][]} strokes at least one point
 * @returns {Float32Array<ArrayBuffer>} 8x8, row by row, 0 for paper and 1 for full ink
 */
export function rasterise(strokes) {
  const points = strokes.flat();
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [top, bottom] = [Math.min(...ys), Math.max(...ys)];
  const width = right - left;
  // A dot or a dash must not be blown up to a full-height blot.
  const height = Math.max(bottom - top, 0.5 * width, 1e-6);

  // The pen's own width counts as part of the digit's box; first with the thinnest pen's.
  let scaleY = (BOX_HEIGHT - PEN_MIN) / height;
  let scaleX = Math.min(scaleY, (BOX_WIDTH - PEN_MIN) / Math.max(width, 1e-6));
  let length = 0;
  for (const stroke of strokes) {
    for (let i = 1; i < stroke.length; i++) {
      const [dx, dy] = [stroke[i][0] - stroke[i - 1][0], stroke[i][1] - stroke[i - 1][1]];
      length += Math.hypot(dx * scaleX, dy * scaleY);
    }
  }
  const pen = Math.min(Math.max(INK / Math.max(length, 1e-6), PEN_MIN), PEN_MAX);
  scaleY = (BOX_HEIGHT - pen) / height;
  scaleX = Math.min(scaleY, Math.max(BOX_WIDTH - pen, 1) / Math.max(width, 1e-6));

  const [middleX, middleY] = [(left + right) / 2, (top + bottom) / 2];
  const placed = strokes.map((stroke) =>
    stroke.map(([x, y]) => [
      (x - middleX) * scaleX + GRID / 2,
      (y - middleY) * scaleY + GRID / 2,
    ]),
  );
  const image = new Float32Array(64);
  for (let row = 0; row < GRID; row++) {
    for (let column = 0; column < GRID; column++) {
      // One pixel of soft edge stands for anti-aliasing.
      const ink = pen / 2 - distance(placed, column + 0.5, row + 0.5) + 0.5;
      image[(row >> 2) * 8 + (column >> 2)] += Math.min(Math.max(ink, 0), 1) / 16;
    }
  }
  return image;
}

/**
 * From a pixel's centre to the nearest stroke, in pixels.
 * @param {number[][][]} strokes
 * @param {number} x
 * @param {number} y
 */
function distance(strokes, x, y) {
  let nearest = Infinity;
  for (const stroke of strokes) {
    for (let i = Math.min(1, stroke.length - 1); i < stroke.length; i++) {
      const [ax, ay] = stroke[Math.max(i - 1, 0)];
      const [dx, dy] = [stroke[i][0] - ax, stroke[i][1] - ay];
      const square = dx * dx + dy * dy;
      const along = square ? ((x - ax) * dx + (y - ay) * dy) / square : 0;
      const t = Math.min(Math.max(along, 0), 1);
      const [ex, ey] = [x - ax - t * dx, y - ay - t * dy];
      nearest = Math.min(nearest, ex * ex + ey * ey);
    }
  }
  return Math.sqrt(nearest);
}
