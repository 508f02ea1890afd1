//! Configuration files of containerd from a seed: versions, spellings of tables, line ends, imports, foreign handlers.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};

use crate::containerd::Version;

/// Numbers from a seed: xorshift64*, so that a seed means the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let random = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(random).unwrap() % end
    }

    /// Whether something happens that happens in so many of 100 cases.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A configuration: what makes it special, its root file, and other files by their path below its directory.
pub struct Generated {
    traits: Vec<String>,
    root: String,
    others: BTreeMap<PathBuf, String>,
    newline: &'static str,
}

/// What somebody else does to the root file after the installation.
#[derive(Clone, Copy, Debug)]
pub enum Edit {
    Nothing,
    CommentAbove(&'static str),
    TableBelow(&'static str),
}

impl Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Edit {
    /// A text with this edit.
    pub fn apply(self, text: &str) -> String {
        match self {
            Edit::Nothing => text.to_owned(),
            Edit::CommentAbove(newline) => match text.strip_prefix('\u{feff}') {
                Some(rest) => format!("\u{feff}# theirs{newline}{rest}"),
                None => format!("# theirs{newline}{text}"),
            },
            // Who appends to a file without a line end begins with one.
            Edit::TableBelow(newline) => format!(
                "{text}{}[timeouts]{newline}\"io.containerd.timeout.task.state\" = \"4s\"{newline}",
                if text.ends_with('\n') { "" } else { newline }
            ),
        }
    }
}

/// How a table's header is spelled.
struct Spelling {
    quote: [&'static str; 3],
    space: &'static str,
    indent: &'static str,
}

impl Spelling {
    fn random(random: &mut Random) -> Spelling {
        Spelling {
            quote: [0; 3].map(|_| random.pick(&["", "", "\"", "'"])),
            space: random.pick(&["", "", "", " "]),
            indent: random.pick(&["", "", "  ", "\t"]),
        }
    }

    fn header(&self, path: &[&str]) -> String {
        let segments = path.iter().enumerate().map(|(index, segment)| {
            let quote = match self.quote[index % 3] {
                "" if segment.contains('.') => "\"",
                quote => quote,
            };
            format!("{quote}{segment}{quote}")
        });
        let dot = format!("{0}.{0}", self.space);
        format!("{}[{}]", self.indent, segments.collect::<Vec<_>>().join(&dot))
    }
}

impl Generated {
    /// The next configuration for a release, with everything of that containerd in `directory`.
    pub fn new(random: &mut Random, release: Version, directory: &Path) -> Generated {
        let is_2 = release == Version::V2_4;
        let version = match is_2 {
            true => random.pick(&[1, 2, 2, 3, 3, 3, 4]),
            false => random.pick(&[1, 2, 2, 2, 2]),
        };
        let cri = match version {
            1 => "cri",
            2 => "io.containerd.grpc.v1.cri",
            _ => "io.containerd.cri.v1.runtime",
        };
        let mut made = Making {
            random,
            traits: vec![format!("version {version}")],
            lines: Vec::new(),
            others: BTreeMap::new(),
            version,
            cri,
            is_2,
        };
        made.top(directory);
        made.tables(directory);
        made.runtimes();
        made.finished()
    }

    /// Sometimes makes of it one with which containerd does not start, or has no CRI.
    pub fn spoiled(mut self, random: &mut Random) -> Generated {
        let nri = "\"io.containerd.nri.v1.nri\"";
        let plugins = match self.root.contains("io.containerd.cri.v1.runtime") {
            true => ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"],
            false if self.root.contains("io.containerd.grpc.v1.cri") => ["io.containerd.grpc.v1.cri"; 2],
            false => ["cri"; 2],
        };
        if random.chance(6) {
            let plugin = random.pick(&plugins);
            self.traits.push(format!("{plugin} is disabled"));
            self.root = self.root.replace(nri, &format!("'{plugin}', {nri}"));
        } else if random.chance(6) && !self.root.contains("imports") {
            self.traits.push("a missing import".to_owned());
            let (mark, rest) = match self.root.strip_prefix('\u{feff}') {
                Some(rest) => ("\u{feff}", rest),
                None => ("", self.root.as_str()),
            };
            self.root = format!("{mark}imports = ['gone/more.toml']{}{rest}", self.newline);
        }
        self
    }

    /// What is special about it.
    pub fn name(&self) -> String {
        self.traits.join(", ")
    }

    /// Writes all files, and returns them.
    pub fn write(&self, directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let root = (PathBuf::from("config.toml"), &self.root);
        let all = self
            .others
            .iter()
            .map(|(path, text)| (path.clone(), text))
            .chain([root]);
        all.map(|(path, text)| {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            (path, text.clone().into_bytes())
        })
        .collect()
    }

    /// Removes all files but the root.
    pub fn remove(&self, directory: &Path) {
        for path in self.others.keys() {
            fs::remove_file(directory.join(path)).unwrap();
            let _ = fs::remove_dir(directory.join(path).parent().unwrap());
        }
    }

    /// What somebody else does to the installed root file, and what it is then.
    pub fn edit(&self, random: &mut Random, installed: &str) -> (String, Edit) {
        let mut edits = vec![Edit::Nothing, Edit::CommentAbove(self.newline)];
        if !installed.contains("timeouts") {
            edits.push(Edit::TableBelow(self.newline));
        }
        let edit = random.pick(&edits);
        (edit.apply(installed), edit)
    }
}

/// A configuration that is being made.
struct Making<'a> {
    random: &'a mut Random,
    traits: Vec<String>,
    lines: Vec<String>,
    others: BTreeMap<PathBuf, String>,
    version: i64,
    cri: &'static str,
    is_2: bool,
}

impl Making<'_> {
    fn special(&mut self, percent: usize, name: &str) -> bool {
        let is = self.random.chance(percent);
        if is {
            self.traits.push(name.to_owned());
        }
        is
    }

    fn line(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
        match self.random.below(12) {
            0 => self
                .lines
                .push("# a comment, with [brackets] and \"quotes\"".to_owned()),
            1 => self.lines.push(String::new()),
            _ => {}
        }
    }

    fn header(&mut self, path: &[&str]) {
        let spelling = Spelling::random(self.random);
        let comment = self.random.pick(&["", "", " # a table"]);
        self.line(format!("{}{comment}", spelling.header(path)));
    }

    fn key(&mut self, key: &str, value: &str) {
        let indent = self.random.pick(&["", "  ", "\t"]);
        let equals = self.random.pick(&[" = ", " = ", "=", "   =  "]);
        let comment = self.random.pick(&["", "", "", " # why"]);
        self.line(format!("{indent}{key}{equals}{value}{comment}"));
    }

    fn text(&mut self, key: &str, value: &str) {
        let quote = self.random.pick(&["\"", "'"]);
        self.key(key, &format!("{quote}{value}{quote}"));
    }

    /// The keys of no table.
    fn top(&mut self, directory: &Path) {
        if self.version > 1 || self.special(30, "version is written") {
            self.key("version", &self.version.to_string());
        }
        for name in ["root", "state"] {
            self.text(name, &directory.join(name).display().to_string());
        }
        let nri = match self.version {
            1 => "\"nri\", \"io.containerd.nri.v1.nri\"",
            _ => "\"io.containerd.nri.v1.nri\"",
        };
        match self.special(30, "array over lines") {
            true => {
                self.line("disabled_plugins = [");
                self.line(format!("  {nri}, # not here"));
                self.line("]");
            }
            false => self.key("disabled_plugins", &format!("[{nri}]")),
        }
        if let Some(imports) = self.imports(directory) {
            self.key("imports", &imports);
        }
    }

    /// The list of imports, with the files in it.
    fn imports(&mut self, directory: &Path) -> Option<String> {
        let debug = "[debug]\nformat = \"text\"\n".to_owned();
        let path = |name: &str| format!("\"{}\"", directory.join(name).display());
        let kind = self.random.pick(&[
            "", "", "", "", "conf.d", "conf.d", "itself", "here", "nested", "file", "cri", "again",
        ]);
        if !kind.is_empty() {
            self.traits.push(format!("imports {kind}"));
        }
        let mut add = |name: &str, text: String| self.others.insert(name.into(), text);
        Some(match kind {
            "conf.d" => {
                add("conf.d/10-debug.toml", debug);
                format!("[{}]", path("conf.d/*.toml"))
            }
            "itself" => format!("[{}, {}]", path("config.toml"), path("conf.d/*.toml")),
            "here" => "['./config.toml']".to_owned(),
            "nested" => {
                add("one.conf", "imports = [\"more/*.conf\"]\n".to_owned());
                add("more/two.conf", debug);
                format!("[{}]", path("one.conf"))
            }
            "file" => {
                add("one.conf", debug);
                "['one.conf']".to_owned()
            }
            "again" => {
                add("back.conf", format!("imports = [{}]\n{debug}", path("config.toml")));
                "['back.conf']".to_owned()
            }
            // containerd 1.x takes this table instead of the root's.
            "cri" => {
                let cni = self.cni(directory);
                let text = format!(
                    "version = {}\n[plugins.\"{}\"]\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n{cni}",
                    self.version, self.cri
                );
                self.others.insert("gpu.conf".into(), text);
                "['*.conf']".to_owned()
            }
            _ => return None,
        })
    }

    fn cni(&self, directory: &Path) -> String {
        let path = directory.join("cni").display().to_string();
        let bins = match self.version {
            1 | 2 => format!("bin_dir = {path:?}"),
            _ => format!("bin_dirs = [{path:?}]"),
        };
        format!("[plugins.\"{}\".cni]\n{bins}\nconf_dir = {path:?}\n", self.cri)
    }

    /// The tables that every node has.
    fn tables(&mut self, directory: &Path) {
        let folder = directory.display().to_string();
        if self.version < 4 {
            self.header(&["grpc"]);
            self.text("address", &format!("{folder}/containerd.sock"));
        } else {
            self.header(&["plugins", "io.containerd.server.v1.grpc"]);
            self.text("address", &format!("{folder}/containerd.sock"));
            self.header(&["plugins", "io.containerd.server.v1.ttrpc"]);
            self.text("address", &format!("{folder}/containerd.sock.ttrpc"));
        }
        let opt = if self.version == 1 {
            "opt"
        } else {
            "io.containerd.internal.v1.opt"
        };
        self.header(&["plugins", opt]);
        self.text("path", &format!("{folder}/opt"));
        if self.special(15, "array of tables") {
            let other = if self.version == 1 {
                "other"
            } else {
                "io.containerd.other.v1.other"
            };
            for _ in 0..2 {
                self.line(format!("[[plugins.\"{other}\".list]]"));
                self.text("name", "[plugins.\\\"x\\\"]".replace("\\\"", "-").as_str());
            }
        }
        self.header(&["plugins", self.cri]);
        self.key("restrict_oom_score_adj", "true");
        self.key("disable_apparmor", "true");
        for line in self.cni(directory).lines() {
            self.line(line);
        }
        if self.special(10, "timeouts") {
            self.header(&["timeouts"]);
            self.text("\"io.containerd.timeout.task.state\"", "3s");
        }
    }

    /// CRI's handlers, in one of the ways to write them.
    fn runtimes(&mut self) {
        let at = ["plugins", self.cri, "containerd", "runtimes"];
        let kind = self.random.below(100);
        match kind {
            0..30 => self.traits.push("no runtimes".into()),
            30..40 => {
                self.traits.push("dotted runtimes".into());
                self.header(&at[..3]);
                self.text("runtimes.runc.runtime_type", "io.containerd.runc.v2");
                return;
            }
            40..45 => {
                self.traits.push("inline runtimes".into());
                self.header(&at[..3]);
                self.key("runtimes", "{ runc = { runtime_type = \"io.containerd.runc.v2\" } }");
                return;
            }
            _ => {
                self.runtime(&at, "runc");
                self.header(&[&at[..], &["runc", "options"]].concat());
                self.key("SystemdCgroup", "false");
            }
        }
        let has_runc = kind >= 30 || self.is_2;
        if has_runc && self.special(20, "another handler") {
            let name = self.random.pick(&["kata", "wasi-old", "wasi.x"]);
            self.runtime(&at, name);
        }
        if has_runc && self.special(5, "our handler is theirs") {
            self.runtime(&at, "wasi");
        }
        // containerd 2.x reads the tables of format 3 in a file of format 2 too.
        if self.is_2 && self.version == 2 && self.special(15, "tables of format 3") {
            self.runtime(
                &["plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes"],
                "runc",
            );
        }
    }

    fn runtime(&mut self, at: &[&str], name: &str) {
        self.header(&[at, &[name]].concat());
        self.text("runtime_type", "io.containerd.runc.v2");
    }

    fn finished(mut self) -> Generated {
        let mut newline = "\n";
        if self.special(15, "line ends of Windows") {
            newline = "\r\n";
        }
        let mut root = self.lines.join(newline);
        if !self.special(20, "no line end at the end") {
            root.push_str(newline);
        }
        if !self.is_2 && self.special(5, "a byte order mark") {
            root.insert(0, '\u{feff}');
        }
        Generated {
            traits: self.traits,
            root,
            others: self.others,
            newline,
        }
    }
}
