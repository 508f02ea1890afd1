//! Plots of a report's figures: a row for each thing that was measured, a column of bars for each measure.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Pixels of the picture, of the names on its left, and of the number behind the longest bar.
const WIDTH: i32 = 1000;
const NAMES: i32 = 270;
const NUMBER: i32 = 70;

/// Pixels of the columns' names, of a row, of a bar in it, and of text.
const HEAD: i32 = 40;
const ROW: i32 = 24;
const BAR: i32 = 16;
const TEXT: i32 = 14;

const OURS: RGBColor = RGBColor(0x65, 0x4f, 0xf0);
const OTHERS: RGBColor = RGBColor(0xa0, 0xa8, 0xb4);

/// One thing that was measured.
pub struct Row {
    pub name: String,
    /// Whether it is kubewasi's, or what that is beside.
    pub is_ours: bool,
    /// A figure for each column.
    pub figures: Vec<f64>,
}

/// Writes the picture to `file`, as SVG: the longest bar of each column is as long as those of the others.
///
/// # Errors
///
/// When the file cannot be written.
pub fn plot(file: &Path, columns: &[&str], rows: &[Row]) -> Result<()> {
    let height = HEAD + ROW * i32::try_from(rows.len())?;
    draw(file, columns, rows, height).with_context(|| format!("cannot write {}", file.display()))
}

fn draw(file: &Path, columns: &[&str], rows: &[Row], height: i32) -> Result<()> {
    let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
    let picture = SVGBackend::new(file, size).into_drawing_area();
    picture.fill(&WHITE)?;
    let text = |what: &str, x: i32, y: i32, side: HPos| {
        let style = ("sans-serif", TEXT)
            .into_text_style(&size)
            .pos(Pos::new(side, VPos::Center));
        picture.draw_text(what, &style, (x, y))
    };
    let middle = |row: usize| -> Result<i32> { Ok(HEAD + ROW * i32::try_from(row)? + ROW / 2) };
    for (number, row) in rows.iter().enumerate() {
        text(&row.name, NAMES - 10, middle(number)?, HPos::Right)?;
    }
    let width = (WIDTH - NAMES) / i32::try_from(columns.len().max(1))?;
    for (index, column) in columns.iter().enumerate() {
        let left = NAMES + width * i32::try_from(index)?;
        text(column, left, HEAD / 2, HPos::Left)?;
        let most = rows.iter().map(|row| row.figures[index]).fold(0.0, f64::max);
        for (number, row) in rows.iter().enumerate() {
            let value = row.figures[index];
            let (y, end) = (middle(number)?, left + length(value, most, width - NUMBER));
            let colour = if row.is_ours { OURS } else { OTHERS };
            let bar = Rectangle::new([(left, y - BAR / 2), (end, y + BAR / 2)], colour.filled());
            picture.draw(&bar)?;
            text(&label(value), end + 5, y, HPos::Left)?;
        }
    }
    picture.present()?;
    Ok(())
}

/// The pixels of a bar, of `longest` for the largest figure; one that is there can be seen.
fn length(value: f64, most: f64, longest: i32) -> i32 {
    let share = if most > 0.0 { value / most } else { 0.0 };
    ((share * f64::from(longest)).round() as i32).max(1)
}

/// As many digits as can be told apart beside the bar.
fn label(value: f64) -> String {
    match value {
        1000.0.. => format!("{:.1}k", value / 1000.0),
        20.0.. => format!("{value:.0}"),
        _ => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_figure_has_the_longest_bar_and_the_smallest_can_be_seen() {
        assert_eq!([10.0, 5.0, 0.001].map(|value| length(value, 10.0, 200)), [200, 100, 1]);
        assert_eq!(length(0.0, 0.0, 200), 1);
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([78009.0, 645.0, 2.14, 0.53].map(label), ["78.0k", "645", "2.1", "0.5"]);
    }

    #[test]
    fn a_plot_has_every_name_and_every_figure_with_a_bar() {
        let file = std::env::temp_dir().join(format!("kubewasi-plot-{}.svg", std::process::id()));
        let row = |name: &str, is_ours, figures: [f64; 2]| Row {
            name: name.into(),
            is_ours,
            figures: figures.to_vec(),
        };
        let rows = [row("wasi & co", true, [3.5, 1200.0]), row("runc", false, [7.5, 90.0])];
        plot(&file, &["MiB", "a second"], &rows).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        for text in ["wasi &amp; co", "runc", "MiB", "a second", "3.5", "7.5", "1.2k", "90"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        // The ground, and a bar a figure.
        assert_eq!(svg.matches("<rect").count(), 5, "{svg}");
        let error = plot(Path::new("/nowhere/a.svg"), &["MiB"], &rows).unwrap_err();
        assert!(error.to_string().contains("/nowhere/a.svg"), "{error:#}");
    }
}
