// Small things that every page needs: elements, errors, numbers as people read them.

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${kind.name} #${id}`);
  return found;
}

/**
 * A new element with attributes and children.
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} children
 */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * The attribute `data-<key>` of the element that has it: so a page tells its script where files are.
 * @param {string} key
 */
export function pageData(key) {
  const holder = document.querySelector(`[data-${key}]`);
  return holder?.getAttribute(`data-${key}`) ?? "";
}

/**
 * Show an error where the visitor looks first, or take it away.
 * @param {unknown} error
 */
export function showError(error) {
  const alert = element("alert", HTMLElement);
  alert.hidden = error === null;
  alert.textContent = error === null ? "" : error instanceof Error ? error.message : String(error);
  if (error === null) return;
  console.error(error);
  // A panel far below may have asked for it.
  alert.scrollIntoView({ block: "nearest" });
}

/**
 * A function that starts `task`; called while one is under way, it has it done once more afterwards,
 * for the newest state, however often it was called. Errors are shown on the page.
 * @param {(isOld: () => boolean) => Promise<void>} task `isOld` tells that it will be done once more
 */
export function newestOnly(task) {
  let pending = false;
  let busy = false;
  return async () => {
    pending = true;
    if (busy) return;
    busy = true;
    try {
      while (pending) {
        pending = false;
        await task(() => pending);
      }
    } catch (error) {
      showError(error);
    } finally {
      busy = false;
    }
  };
}

/** @param {number} bytes */
export function bytes(bytes) {
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(bytes < 1e4 ? 1 : 0)} kB`;
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

/** A time in the unit that suits it. @param {number} ms */
export function milliseconds(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  if (ms < 0.1) return `${(1000 * ms).toFixed(ms < 0.01 ? 1 : 0)} µs`;
  return `${ms.toFixed(ms < 10 ? 2 : ms < 100 ? 1 : 0)} ms`;
}

/** @param {number[]} values */
export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Grows `fill` to a share of its track. @param {Element} fill @param {number} share 0 to 1 */
export function setBar(fill, share) {
  /** @type {HTMLElement} */ (fill).style.transform = `scaleX(${Math.min(1, Math.max(0, share))})`;
}

// On a narrow screen the menu scrolls: the page's own entry is to be in sight.
document.querySelector(".nav [aria-current=page]")?.scrollIntoView({ inline: "center", block: "nearest" });
