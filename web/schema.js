// A validator for the subset of JSON Schema that pywebgpu/manifest.schema.json uses, so that one
// schema serves Python and JavaScript. A keyword it does not know is an error, never ignored.

/** @typedef {Record<string, any>} Schema */
/** @typedef {{schema: Schema, root: Schema, path: string}} Context */

const ANNOTATIONS = new Set(["$schema", "$id", "$defs", "$comment", "title", "description"]);

/** @type {Record<string, (value: any) => boolean>} */
const TYPES = {
  any: () => true,
  object: (v) => v !== null && typeof v === "object" && !Array.isArray(v),
  array: Array.isArray,
  string: (v) => typeof v === "string",
  integer: Number.isInteger,
  number: (v) => typeof v === "number",
  boolean: (v) => typeof v === "boolean",
  null: (v) => v === null,
};

/**
 * The first violation as "path: what", or null when `value` fits.
 * @param {any} value
 * @param {Schema | boolean} schema
 * @param {Schema} [root] where $ref looks
 * @param {string} [path] of `value`, as a JSON pointer
 * @returns {string | null}
 */
export function violation(value, schema, root = /** @type {Schema} */ (schema), path = "") {
  if (schema === true) return null;
  if (schema === false) return `${path || "/"}: not allowed`;
  const context = { schema, root, path };
  return first(Object.entries(schema), ([keyword, rule]) => {
    if (ANNOTATIONS.has(keyword)) return null;
    const [type, check] = KEYWORDS[keyword] ?? ["any", () => `the schema's "${keyword}" is unknown`];
    if (!TYPES[type](value)) return null;
    const found = check(rule, value, context);
    // `false` is "no", text is "no, because", and an array holds the message from further inside.
    if (found === true || found === null) return null;
    if (Array.isArray(found)) return found[0];
    return `${path || "/"}: ${found || `violates ${keyword} ${JSON.stringify(rule)}`}`;
  });
}

/** @typedef {true | false | null | string | [string | null]} Found */

/**
 * The check behind each keyword, and the type of value that it applies to.
 * @type {Record<string, [string, (rule: any, value: any, context: Context) => Found]>}
 */
const KEYWORDS = {
  $ref: ["any", (rule, value, { root, path }) =>
    inside(violation(value, root.$defs[rule.slice("#/$defs/".length)], root, path))],
  type: ["any", (rule, value) => [rule].flat().some((type) => TYPES[type](value))],
  const: ["any", (rule, value) => value === rule],
  enum: ["any", (rule, value) => rule.includes(value)],
  minimum: ["number", (rule, value) => value >= rule],
  multipleOf: ["number", (rule, value) => value % rule === 0],
  minLength: ["string", (rule, value) => value.length >= rule],
  pattern: ["string", (rule, value) => new RegExp(rule, "u").test(value)],
  minItems: ["array", (rule, value) => value.length >= rule],
  maxItems: ["array", (rule, value) => value.length <= rule],
  uniqueItems: ["array", (rule, value) =>
    !rule || new Set(value.map((/** @type {any} */ v) => JSON.stringify(v))).size === value.length],
  prefixItems: ["array", (rule, value, { root, path }) =>
    inside(first(value.slice(0, rule.length), (v, i) => violation(v, rule[i], root, `${path}/${i}`)))],
  items: ["array", (rule, value, { schema, root, path }) => {
    const skip = schema.prefixItems?.length ?? 0;
    return inside(
      first(value.slice(skip), (v, i) => violation(v, rule, root, `${path}/${i + skip}`)),
    );
  }],
  required: ["object", (rule, value) => {
    const missing = rule.find((/** @type {string} */ name) => !Object.hasOwn(value, name));
    return missing === undefined || `"${missing}" is missing`;
  }],
  properties: ["object", (rule, value, { root, path }) =>
    inside(first(Object.keys(rule), (name) =>
      Object.hasOwn(value, name) ? violation(value[name], rule[name], root, `${path}/${name}`) : null,
    ))],
  additionalProperties: ["object", (rule, value, { schema, root, path }) =>
    inside(first(Object.keys(value), (name) =>
      Object.hasOwn(schema.properties ?? {}, name)
        ? null
        : violation(value[name], rule, root, `${path}/${name}`),
    ))],
  propertyNames: ["object", (rule, value, { root, path }) =>
    inside(first(Object.keys(value), (name) => violation(name, rule, root, `${path}/${name}`)))],
  anyOf: ["any", (rule, value, context) => fitting(rule, value, context) > 0 || "fits no alternative"],
  oneOf: ["any", (rule, value, context) =>
    fitting(rule, value, context) === 1 || "does not fit exactly one alternative"],
};

/** @param {string | null} found @returns {Found} */
const inside = (found) => found === null || [found];

/**
 * @template T
 * @param {T[]} items
 * @param {(item: T, index: number) => string | null} check
 */
function first(items, check) {
  for (const [index, item] of items.entries()) {
    const found = check(item, index);
    if (found !== null) return found;
  }
  return null;
}

/**
 * How many of the alternatives `value` fits.
 * @param {Schema[]} rules
 * @param {any} value
 * @param {Context} context
 */
const fitting = (rules, value, { root, path }) =>
  rules.filter((schema) => violation(value, schema, root, path) === null).length;
