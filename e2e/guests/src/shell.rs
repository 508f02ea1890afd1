//! The toolbox's shell: lists, `&&`, `||`, pipes, `while`, quotes and `2>&1`; what it does not know is a syntax error.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Write};
use std::iter::Peekable;
use std::path::Path;
use std::vec::IntoIter;

use crate::{Streams, call};

/// `sh -c SCRIPT`, or `sh`: each line of the input. Returns the last command's exit code.
pub fn run(arguments: &[String], streams: &mut Streams<'_>) -> i32 {
    match arguments {
        [] => interactive(streams),
        [option, script] if option == "-c" => perform(script, streams),
        _ => fail(streams, "usage: sh [-c SCRIPT]"),
    }
}

fn interactive(streams: &mut Streams<'_>) -> i32 {
    let mut code = 0;
    let mut lines = BufReader::new(&mut *streams.input);
    loop {
        let mut line = String::new();
        match lines.read_line(&mut line) {
            Ok(0) => return code,
            Ok(_) => {}
            Err(error) => return fail(streams, &error.to_string()),
        }
        // The commands of a script that is read from the input find it empty.
        let mut streams = Streams {
            input: &mut io::empty(),
            output: streams.output,
            error: streams.error,
        };
        code = perform(&line, &mut streams);
    }
}

fn perform(script: &str, streams: &mut Streams<'_>) -> i32 {
    match tokens(script).and_then(|tokens| Parser(tokens.into_iter().peekable()).script()) {
        Ok(list) => list.perform(streams),
        Err(error) => fail(streams, &error),
    }
}

fn fail(streams: &mut Streams<'_>, message: &str) -> i32 {
    // What cannot be told is nobody's to hear.
    let _ = writeln!(streams.error, "sh: {message}");
    2
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    /// `;` or the end of a line, `&&`, `||`, `|`, `2>&1`.
    Operator(&'static str),
}

/// Cuts a script into words, which may be quoted, and operators.
fn tokens(script: &str) -> Result<Vec<Token>, String> {
    const OPERATORS: [(&str, &str); 6] = [
        ("2>&1", "2>&1"),
        ("&&", "&&"),
        ("||", "||"),
        ("|", "|"),
        (";", ";"),
        ("\n", ";"),
    ];
    let mut tokens = Vec::new();
    let mut rest = script;
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return Ok(tokens);
        }
        if let Some((text, operator)) = OPERATORS.iter().find(|(text, _)| rest.starts_with(text)) {
            tokens.push(Token::Operator(operator));
            rest = &rest[text.len()..];
            continue;
        }
        let (word, after) = word(rest)?;
        tokens.push(Token::Word(word));
        rest = after;
    }
}

fn word(text: &str) -> Result<(String, &str), String> {
    let mut word = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        match next {
            ' ' | '\t' | '\n' | ';' | '|' | '&' if !rest.starts_with('&') || rest.starts_with("&&") => break,
            '\'' | '"' => {
                let (quoted, after) = rest[1..]
                    .split_once(next)
                    .ok_or_else(|| "syntax error: unterminated quoted string".to_owned())?;
                word.push_str(quoted);
                rest = after;
            }
            '$' | '`' | '<' | '>' | '&' | '(' | ')' => return Err(format!("syntax error: unexpected \"{next}\"")),
            _ => {
                word.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    Ok((word, rest))
}

/// Commands, each with the operator that stands before it.
#[derive(Debug, PartialEq)]
struct List(Vec<(&'static str, Command)>);

#[derive(Debug, PartialEq)]
enum Command {
    /// Simple commands whose outputs are the next one's inputs; true where the error stream joins the output.
    Pipeline(Vec<(Vec<String>, bool)>),
    While {
        condition: List,
        body: List,
    },
}

struct Parser(Peekable<IntoIter<Token>>);

impl Parser {
    fn script(mut self) -> Result<List, String> {
        let list = self.list(&[])?;
        match self.0.next() {
            None => Ok(list),
            Some(token) => Err(format!("syntax error: unexpected {token:?}")),
        }
    }

    /// Commands up to one of the words `ends`, which is left.
    fn list(&mut self, ends: &[&str]) -> Result<List, String> {
        let mut list = Vec::new();
        let mut before = ";";
        loop {
            while before == ";" && self.operator(&[";"]).is_some() {}
            match self.0.peek() {
                None => return Ok(List(list)),
                Some(Token::Word(word)) if ends.contains(&word.as_str()) => return Ok(List(list)),
                Some(_) => list.push((before, self.command()?)),
            }
            match self.operator(&[";", "&&", "||"]) {
                Some(operator) => before = operator,
                None => return Ok(List(list)),
            }
        }
    }

    fn command(&mut self) -> Result<Command, String> {
        if self.0.next_if_eq(&Token::Word("while".into())).is_some() {
            let condition = self.list(&["do"])?;
            self.keyword("do")?;
            let body = self.list(&["done"])?;
            self.keyword("done")?;
            return Ok(Command::While { condition, body });
        }
        let mut pipeline = Vec::new();
        loop {
            let mut words = Vec::new();
            while let Some(Token::Word(word)) = self.0.next_if(|token| matches!(token, Token::Word(_))) {
                words.push(word);
            }
            if words.is_empty() {
                return Err("syntax error: a command is missing".into());
            }
            let merged = self.operator(&["2>&1"]).is_some();
            pipeline.push((words, merged));
            if self.operator(&["|"]).is_none() {
                return Ok(Command::Pipeline(pipeline));
            }
        }
    }

    fn operator(&mut self, which: &[&str]) -> Option<&'static str> {
        match self
            .0
            .next_if(|token| matches!(token, Token::Operator(found) if which.contains(found)))
        {
            Some(Token::Operator(operator)) => Some(operator),
            _ => None,
        }
    }

    fn keyword(&mut self, word: &str) -> Result<(), String> {
        self.0
            .next_if_eq(&Token::Word(word.into()))
            .map(drop)
            .ok_or_else(|| format!("syntax error: \"{word}\" is missing"))
    }
}

impl List {
    fn perform(&self, streams: &mut Streams<'_>) -> i32 {
        let mut code = 0;
        for (before, command) in &self.0 {
            if matches!((*before, code), ("&&", 1..) | ("||", 0)) {
                continue;
            }
            code = command.perform(streams);
        }
        code
    }
}

impl Command {
    fn perform(&self, streams: &mut Streams<'_>) -> i32 {
        match self {
            Command::Pipeline(commands) => pipeline(commands, streams),
            Command::While { condition, body } => {
                let mut code = 0;
                while condition.perform(streams) == 0 {
                    code = body.perform(streams);
                }
                code
            }
        }
    }
}

/// Runs one command after the other, each on what the one before it has said: nothing here runs beside anything else.
fn pipeline(commands: &[(Vec<String>, bool)], streams: &mut Streams<'_>) -> i32 {
    let mut code = 0;
    let mut said = None;
    for (index, (words, merged)) in commands.iter().enumerate() {
        let last = index + 1 == commands.len();
        let mut input = said.take().map(Cursor::new);
        let mut kept = Vec::new();
        let mut errors = Vec::new();
        {
            let mut own = Streams {
                input: match &mut input {
                    Some(before) => before,
                    None => streams.input,
                },
                output: if last { streams.output } else { &mut kept },
                error: if *merged { &mut errors } else { streams.error },
            };
            code = match forbidden(&words[0]) {
                false => call(&words[0], &words[1..], &mut own),
                true => {
                    let shell = std::env::args().next().unwrap_or_default();
                    // What cannot be told is nobody's to hear.
                    let _ = writeln!(own.error, "{shell}: {}: Permission denied", words[0]);
                    126
                }
            };
        }
        let joined: &mut dyn Write = if last { streams.output } else { &mut kept };
        if joined.write_all(&errors).is_err() {
            return 1;
        }
        said = Some(kept);
    }
    code
}

/// Whether a file of the tool's name is where programs are, but masked: what masks it is empty, or no file to read.
fn forbidden(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(|file| file.exists())
        .is_some_and(|file| {
            let masked = |file: File| Ok(file.metadata()?.len() == 0);
            !file.is_file() || File::open(file).and_then(masked).unwrap_or(true)
        })
}
