// The program for Node.js, to compare with.
import { main } from "./merge.js";

process.exitCode = main(process.env);
