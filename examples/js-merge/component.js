// The program as a component: wasi:cli/run is its entry point, and throwing is how it fails.
import { getEnvironment } from "wasi:cli/environment@0.2.10";

import { main } from "./merge.js";

export const run = {
  run() {
    if (main(Object.fromEntries(getEnvironment())) !== 0) throw undefined;
  },
};
