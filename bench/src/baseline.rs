//! The shim of this tree compared with those of other commits: interleaved rounds, and the table that compares them.

use std::env::{self, VarError};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::verdict::{Better, Spread, Verdict, change};

/// How many rounds are measured unless `BENCH_ROUNDS` says otherwise.
const ROUNDS: usize = 7;

/// How long each load of a service lasts unless `BENCH_SECONDS` says otherwise.
const LOAD: u64 = 3;

/// Which commit a build is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The last one before an issue.
    Baseline,
    /// The one that is judged.
    Tree,
    /// The one that closed an earlier issue.
    Closing,
}

impl Role {
    const ALL: [Role; 3] = [Role::Baseline, Role::Tree, Role::Closing];

    /// As arguments and the table have it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Baseline => "baseline",
            Role::Tree => "tree",
            Role::Closing => "closing",
        }
    }
}

/// A release build of the shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    pub role: Role,
    pub shim: PathBuf,
}

impl Build {
    /// Parses the arguments `baseline=SHIM tree=SHIM [closing=SHIM]`, in any order.
    ///
    /// # Errors
    ///
    /// When an argument is not of that form, or a role is there twice, or the first two are not there.
    pub fn parse_all(args: &[String]) -> Result<Vec<Build>> {
        let mut builds: Vec<Build> = Vec::new();
        for arg in args {
            let build = arg.split_once('=').and_then(|(name, shim)| {
                let role = Role::ALL.into_iter().find(|role| role.name() == name)?;
                Some(Build {
                    role,
                    shim: shim.into(),
                })
            });
            let build = build.with_context(|| {
                format!("invalid build \"{arg}\": must be baseline=SHIM, tree=SHIM or closing=SHIM")
            })?;
            let is_new = builds.iter().all(|other| other.role != build.role);
            ensure!(
                is_new,
                "invalid build \"{arg}\": there is a {} already",
                build.role.name()
            );
            builds.push(build);
        }
        for role in [Role::Baseline, Role::Tree] {
            let is_there = builds.iter().any(|build| build.role == role);
            ensure!(is_there, "missing build {}=SHIM", role.name());
        }
        Ok(builds)
    }

    /// The runtime's name for containerd, which takes a shim's absolute path for one.
    pub fn runtime(&self) -> String {
        self.shim.display().to_string()
    }

    /// Writes the handler's options to a file in `directory`; each `key` has a server and a cache of its own.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn options(&self, directory: &Path, key: &str) -> Result<PathBuf> {
        let name = format!("{}-{key}", self.role.name());
        let cache = directory.join(format!("cache-{name}"));
        let file = directory.join(format!("{name}.toml"));
        let text = format!("cache_dir = \"{}\"\nidle_timeout = 2\n", cache.display());
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }
}

/// One figure of one round.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured, with its unit.
    pub name: String,
    pub better: Better,
    pub value: f64,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub rounds: usize,
    /// How long each load of a service lasts.
    pub load: Duration,
}

impl Effort {
    /// `BENCH_ROUNDS` rounds with loads of `BENCH_SECONDS` seconds; 7 and 3 where they are not set.
    ///
    /// # Errors
    ///
    /// When one of them is not a whole number from 1.
    pub fn from_env() -> Result<Effort> {
        Ok(Effort {
            rounds: positive("BENCH_ROUNDS", ROUNDS)?,
            load: Duration::from_secs(positive("BENCH_SECONDS", LOAD)?),
        })
    }
}

fn positive<T: FromStr + PartialEq + Default>(name: &str, default: T) -> Result<T> {
    let text = match env::var(name) {
        Ok(text) => text,
        Err(VarError::NotPresent) => return Ok(default),
        Err(VarError::NotUnicode(text)) => text.to_string_lossy().into_owned(),
    };
    let number = text.parse().ok().filter(|number| *number != T::default());
    number.with_context(|| format!("invalid {name} \"{text}\": must be a whole number from 1"))
}

/// The samples of every figure, in the order in which the figures were first measured.
#[derive(Debug)]
pub struct Comparison {
    roles: Vec<Role>,
    series: Vec<Series>,
}

#[derive(Debug)]
struct Series {
    name: String,
    better: Better,
    /// By the index of the role.
    samples: Vec<Vec<f64>>,
}

/// Measures every build once a round, one after the other, for `rounds` rounds.
///
/// # Errors
///
/// The first of `measure`.
pub async fn interleave(
    builds: &[Build],
    rounds: usize,
    mut measure: impl AsyncFnMut(&Build, usize) -> Result<Vec<Figure>>,
) -> Result<Comparison> {
    let mut comparison = Comparison {
        roles: builds.iter().map(|build| build.role).collect(),
        series: Vec::new(),
    };
    for round in 0..rounds {
        for build in builds {
            let name = build.role.name();
            eprintln!("bench: round {} of {rounds}, {name}", round + 1);
            let figures = measure(build, round).await;
            comparison.add(build.role, figures.with_context(|| format!("the build of the {name}"))?);
        }
    }
    Ok(comparison)
}

impl Comparison {
    fn add(&mut self, role: Role, figures: Vec<Figure>) {
        let count = self.roles.len();
        let Some(index) = self.roles.iter().position(|other| *other == role) else {
            return;
        };
        for figure in figures {
            let known = self.series.iter().position(|series| series.name == figure.name);
            let known = known.unwrap_or_else(|| {
                self.series.push(Series {
                    name: figure.name,
                    better: figure.better,
                    samples: vec![Vec::new(); count],
                });
                self.series.len() - 1
            });
            self.series[known].samples[index].push(figure.value);
        }
    }

    /// Prints the table: for each figure the median of each build with its least and its most, the change from the
    /// baseline's median to the tree's, and the verdict.
    ///
    /// # Errors
    ///
    /// When a figure is worse than before.
    pub fn conclude(&self) -> Result<()> {
        let (table, failures) = self.table()?;
        println!("{table}");
        if !failures.is_empty() {
            bail!("not within noise of before: {}", failures.join("; "));
        }
        Ok(())
    }

    /// The table, and the figures that do not hold.
    fn table(&self) -> Result<(String, Vec<&str>)> {
        let header = |role: &Role| format!("{}, median (min to max)", role.name());
        let mut lines = vec![vec!["figure".to_owned()]];
        lines[0].extend(self.roles.iter().map(header));
        lines[0].extend(["change", "verdict"].map(str::to_owned));
        let mut failures = Vec::new();
        for series in &self.series {
            let spreads: Vec<Spread> = series.samples.iter().map(|samples| Spread::of(samples)).collect();
            let of = |role: Role| {
                let index = self.roles.iter().position(|other| *other == role)?;
                spreads.get(index).copied()
            };
            let (baseline, tree) = (of(Role::Baseline), of(Role::Tree));
            let baseline = baseline.context("the baseline was not measured")?;
            let tree = tree.context("the tree was not measured")?;
            let verdict = Verdict::of(series.better, tree, baseline, of(Role::Closing));
            if !verdict.holds() {
                failures.push(series.name.as_str());
            }
            let mut line = vec![series.name.clone()];
            line.extend(spreads.iter().map(|spread| {
                let [median, min, max] = [spread.median, spread.min, spread.max].map(label);
                format!("{median} ({min} to {max})")
            }));
            line.push(format!("{:+.1} %", change(baseline.median, tree.median) * 100.0));
            line.push(verdict.text().to_owned());
            lines.push(line);
        }
        Ok((aligned(&lines), failures))
    }
}

/// As many digits as say something.
fn label(value: f64) -> String {
    match value {
        1000.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Lines of as many cells each, in columns.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a string does not fail.
            let _ = write!(row, "{cell:width$}  ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builds(args: &[&str]) -> Result<Vec<Build>> {
        Build::parse_all(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_comparison_needs_a_baseline_and_a_tree_and_takes_a_closing_build() {
        let parsed = builds(&["baseline=/a/shim", "tree=/b=c/shim", "closing=/d"]).unwrap();
        let parsed: Vec<_> = parsed.iter().map(|build| (build.role, build.runtime())).collect();
        assert_eq!(
            parsed,
            [
                (Role::Baseline, "/a/shim".to_owned()),
                (Role::Tree, "/b=c/shim".to_owned()),
                (Role::Closing, "/d".to_owned())
            ]
        );
        for (args, error) in [
            (&["tree=/b"][..], "missing build baseline=SHIM"),
            (&["baseline=/a", "tree=/b", "tree=/c"], "invalid build \"tree=/c\""),
            (&["baseline=/a", "before=/b"], "invalid build \"before=/b\""),
            (&["/a", "/b"], "invalid build \"/a\""),
        ] {
            let refused = builds(args).unwrap_err().to_string();
            assert!(refused.starts_with(error), "{refused}");
        }
    }

    #[test]
    fn builds_and_rounds_have_caches_of_their_own() {
        let directory = env::temp_dir().join(format!("kubewasi-builds-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let builds = builds(&["baseline=/a", "tree=/b"]).unwrap();
        let texts: std::collections::BTreeSet<String> = builds
            .iter()
            .flat_map(|build| ["0", "1"].map(|key| build.options(&directory, key).unwrap()))
            .map(|file| fs::read_to_string(file).unwrap())
            .collect();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(texts.len(), 4);
    }

    fn comparison(tree_rates: [f64; 3]) -> Comparison {
        let builds = builds(&["baseline=/a", "tree=/b"]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let measured = interleave(&builds, 3, async |build, round| {
            let rate = match build.role {
                Role::Baseline => [1000.0, 1020.0, 990.0][round],
                _ => tree_rates[round],
            };
            let figure = |name: &str, better, value| Figure {
                name: name.to_owned(),
                better,
                value,
            };
            Ok(vec![
                figure("requests/s", Better::Higher, rate),
                figure("MiB", Better::Lower, 5.25),
            ])
        });
        runtime.block_on(measured).unwrap()
    }

    #[test]
    fn the_table_has_medians_least_most_change_and_verdict_of_each_figure() {
        let comparison = comparison([1010.0, 1005.0, 700.0]);
        let (table, failures) = comparison.table().unwrap();
        assert_eq!(
            table,
            "figure      baseline, median (min to max)  tree, median (min to max)  change  verdict\n\
             requests/s  1000 (990.0 to 1020)           1005 (700.0 to 1010)       +0.5 %  within noise of before\n\
             MiB         5.25 (5.25 to 5.25)            5.25 (5.25 to 5.25)        +0.0 %  within noise of before\n"
        );
        assert_eq!(failures, [""; 0]);
    }

    #[test]
    fn a_figure_that_is_worse_than_before_fails_the_comparison_by_name() {
        let comparison = comparison([900.0, 905.0, 910.0]);
        let error = comparison.conclude().unwrap_err().to_string();
        assert_eq!(error, "not within noise of before: requests/s");
    }

    #[test]
    fn a_build_is_measured_once_in_every_round_before_the_next_round_begins() {
        let builds = builds(&["baseline=/a", "tree=/b", "closing=/c"]).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut order = Vec::new();
        let measured = interleave(&builds, 2, async |build, round| {
            order.push((round, build.role));
            Ok(Vec::new())
        });
        runtime.block_on(measured).unwrap();
        let roles = [Role::Baseline, Role::Tree, Role::Closing];
        let expected: Vec<_> = [0, 1]
            .into_iter()
            .flat_map(|round| roles.map(|role| (round, role)))
            .collect();
        assert_eq!(order, expected);
    }

    /// What `hack/bench sections` says of this `BENCH`: the sections, or the error.
    fn sections(bench: &str) -> Result<String, String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/bench");
        let output = std::process::Command::new(script)
            .arg("sections")
            .env("BENCH", bench)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    #[test]
    fn bench_picks_sections_in_its_order_and_none_is_all() {
        assert_eq!(sections("http"), Ok("http\n".to_owned()));
        assert_eq!(sections("http,languages"), Ok("http\nlanguages\n".to_owned()));
        assert_eq!(sections(""), Ok("languages\nhttp\ncontainers\n".to_owned()));
    }

    #[test]
    fn unknown_sections_are_listed_with_those_there_are() {
        let error = sections("htp,http,report").unwrap_err();
        assert_eq!(
            error,
            "invalid BENCH \"htp,http,report\": unknown \"htp\" \"report\"; must be some of: languages http containers, \
             with commas between them\n"
        );
    }
}
