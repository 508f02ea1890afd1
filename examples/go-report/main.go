// Report adds up all orders on a volume: a job for cron.
//
// Orders are CSV files (customer,cents) in DATA/orders; their totals go into DATA/report.json. Every run makes the report
// anew, so one that was cut short, or that overlaps the next, does no harm.
package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Report is what the totals file holds.
type Report struct {
	Files int `json:"files"`
	// Cents by customer.
	Totals map[string]int64 `json:"totals"`
}

func main() {
	data := os.Getenv("DATA")
	if data == "" {
		data = "/data"
	}
	if err := run(data); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(data string) error {
	files, err := filepath.Glob(filepath.Join(data, "orders", "*.csv"))
	if err != nil {
		return err
	}
	report := &Report{Totals: map[string]int64{}}
	for _, file := range files {
		if err := report.add(file); err != nil {
			return err
		}
	}
	if err := report.save(filepath.Join(data, "report.json")); err != nil {
		return err
	}
	fmt.Printf("%d files, %d customers\n", report.Files, len(report.Totals))
	return nil
}

// add counts the orders of one file.
func (r *Report) add(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for number, row := range rows {
		if len(row) != 2 {
			return fmt.Errorf("%s: row %d has %d fields, not customer and cents", path, number+1, len(row))
		}
		cents, err := strconv.ParseInt(row[1], 10, 64)
		if err != nil {
			return fmt.Errorf("%s: row %d: %w", path, number+1, err)
		}
		r.Totals[row[0]] += cents
	}
	r.Files++
	return nil
}

// save replaces the totals file, whole or not at all.
func (r *Report) save(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
