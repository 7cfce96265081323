// The page for any model of the site.

import { Explorer } from "./explorer.js";

new Explorer().runner.start();
