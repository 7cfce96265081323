// Where no driver can be installed: the page works through a list by itself and posts the results.

const { jobs, collector } = await (await fetch("../jobs.json")).json();
const index = Number(new URLSearchParams(location.search).get("job") ?? 0);

/** @param {object} result */
const post = (result) => fetch(collector, { method: "POST", body: JSON.stringify({ index, ...result }) });

if (index < jobs.length) {
  const late = new Promise((resolve) =>
    setTimeout(() => resolve({ failed: "took more than a minute" }), 60_000));
  const { info, options } = jobs[index];
  const work = /** @type {any} */ (window).bench(info, options)
    .catch((/** @type {unknown} */ error) => ({ failed: String(error) }));
  await post(await Promise.race([work, late]));
  location.search = `?job=${index + 1}`; // a fresh page: backends and thread counts are fixed once set
} else {
  await post({ done: true });
}
