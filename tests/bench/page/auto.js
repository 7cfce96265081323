// Where no driver can be installed: the page works through a list by itself and posts the results.
// Whoever started the browser starts another one where a job never answers.

const { jobs, collector } = await (await fetch("../jobs.json")).json();
const index = Number(new URLSearchParams(location.search).get("job") ?? 0);

/** @param {object} result */
const post = (result) => fetch(collector, { method: "POST", body: JSON.stringify({ index, ...result }) });

if (index < jobs.length) {
  const { info, options } = jobs[index];
  const work = /** @type {any} */ (window).bench(info, options);
  await post(await work.catch((/** @type {unknown} */ error) => ({ failed: String(error) })));
  location.search = `?job=${index + 1}`; // a fresh page: backends and thread counts are fixed once set
}
