// Fills a template's {{fields}} from records: for each record one line.

export function merge(template, records) {
  return records.map((record, index) =>
    template.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, field) => {
      if (!(field in record)) throw new Error(`record ${index + 1} has no ${field}`);
      return record[field];
    }),
  );
}

// Reads TEMPLATE and RECORDS, a JSON list, from the environment, and prints what becomes of them. Returns the exit code.
export function main(environment) {
  const { TEMPLATE: template, RECORDS: records } = environment;
  if (template === undefined || records === undefined) {
    console.error("merge: set TEMPLATE and RECORDS, a JSON list of objects");
    return 2;
  }
  try {
    for (const line of merge(template, JSON.parse(records))) console.log(line);
    return 0;
  } catch (error) {
    console.error(`merge: ${error.message}`);
    return 1;
  }
}
