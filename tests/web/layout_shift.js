// Sums up how far things on the page have moved without the visitor's doing.
globalThis.layoutShift = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    if (!entry.hadRecentInput) globalThis.layoutShift += entry.value;
  }
}).observe({ type: "layout-shift", buffered: true });
