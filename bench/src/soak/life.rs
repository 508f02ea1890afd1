//! The kinds of lives that containers lead, drawn by chance (pure).

use std::time::Duration;

use fastrand::Rng;

use crate::lines::Reader;
use crate::spec::{Wants, args};

/// Enough lines for a guest that is never done.
const ENDLESS: u64 = 4_000_000_000;

/// SIGKILL and SIGTERM (signal(7)).
pub const KILL: u32 = 9;
const TERM: u32 = 15;

/// What a container does, and what is done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// Ends with a code.
    Exit(u8),
    Trap,
    /// Writes so many lines.
    Lines(u64, Reader),
    /// Writes lines until it is killed.
    Flood(Duration, Reader),
    /// Gets a signal after a while, idle or busy.
    Signal {
        signal: u32,
        busy: bool,
        after: Duration,
    },
    /// Repeats so many lines of its input.
    Echo(u64),
    /// Never reads its input.
    Deaf,
    /// Fills a file in memory until its cgroup has none left.
    OutOfMemory,
    /// Asks for more memory than it may have, and is told that there is none.
    Full,
    /// Is paused for a while, and killed afterwards.
    Paused(Duration),
    /// Is deleted before its start.
    Unstarted,
    /// May have one process and no more.
    Alone,
    /// So many processes are exec'd into it, and one more that goes with it.
    Execs(u8),
    /// Holds a pod's namespaces while these live in it.
    Pod(Vec<Member>),
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub life: Life,
    pub program: &'static str,
}

/// The probe as a native program.
pub const NATIVE: &str = "probe";

/// The probes' files: WASI 0.1, 0.2 and 0.3.
pub const WORLDS: [&str; 3] = ["probe01.wasm", "probe02.wasm", "probe03.wasm"];

impl Life {
    /// A life by chance; the short ones are the more frequent.
    pub fn draw(rng: &mut Rng) -> Life {
        let reader = match rng.u8(0..6) {
            0 => Reader::Slow,
            1 => Reader::Absent,
            _ => Reader::Prompt,
        };
        let mut millis = |most: u64| Duration::from_millis(rng.u64(0..=most));
        let (short, long) = (millis(100), millis(600));
        match rng.u8(0..29) {
            0..6 => Life::Exit(rng.u8(0..126)),
            6 => Life::Trap,
            7..11 => Life::Lines(rng.u64(1..3000), reader),
            11..13 => Life::Flood(long, reader),
            13..17 => Life::Signal {
                signal: if rng.bool() { KILL } else { TERM },
                busy: rng.u8(0..4) == 0,
                after: long,
            },
            17..19 => Life::Echo(rng.u64(1..3000)),
            19 => Life::Deaf,
            20 => Life::OutOfMemory,
            21 => Life::Paused(short),
            22 => Life::Unstarted,
            23 => Life::Alone,
            24 => Life::Full,
            25..27 => Life::Execs(rng.u8(1..4)),
            _ => Life::Pod((0..rng.u8(1..4)).map(|_| Life::draw_member(rng)).collect()),
        }
    }

    /// A container of a pod, a native one now and then.
    fn draw_member(rng: &mut Rng) -> Member {
        let life = loop {
            let life = Life::draw(rng);
            if !matches!(life, Life::Pod(_)) {
                break life;
            }
        };
        if rng.u8(0..3) == 0 && life.suits_native() {
            return Member { life, program: NATIVE };
        }
        let program = WORLDS[rng.usize(0..WORLDS.len())];
        Member { life, program }
    }

    /// Whether a native program lives it alike: as the first process of its namespace that one ignores SIGTERM, and runc
    /// needs more than one process.
    fn suits_native(&self) -> bool {
        match self {
            Life::Signal { signal, .. } => *signal == KILL,
            Life::Trap | Life::Deaf | Life::Alone | Life::Full | Life::Pod(_) => false,
            _ => true,
        }
    }

    /// The shortest life.
    pub fn brief(rng: &mut Rng) -> Life {
        if rng.bool() {
            Life::Exit(0)
        } else {
            Life::Lines(10, Reader::Prompt)
        }
    }

    /// What its spec says, for the probe `program`; the pod is added by whoever knows it.
    pub fn wants(&self, program: &str) -> Wants {
        let command = match self {
            Life::Exit(code) => format!("exit-with-code {code}"),
            Life::Trap => "trap".into(),
            Life::Lines(count, _) => format!("lines {count}"),
            Life::Flood(..) => format!("lines {ENDLESS}"),
            Life::Signal { busy: true, .. } | Life::Paused(_) => "spin".into(),
            Life::Signal { busy: false, .. } | Life::Deaf | Life::Unstarted | Life::Execs(_) => "idle".into(),
            Life::Echo(_) => "cat".into(),
            Life::OutOfMemory => "flood /dev/shm/file 256".into(),
            Life::Full => "fill 256".into(),
            Life::Alone => "exit-with-code 0".into(),
            // Of a sandbox nothing is run.
            Life::Pod(_) => "pause".into(),
        };
        Wants {
            args: args(program, &command),
            memory: matches!(self, Life::OutOfMemory | Life::Full).then_some(64 << 20),
            pids: (*self == Life::Alone).then_some(1),
            pod: None,
        }
    }

    /// How it ends.
    pub fn codes(&self) -> Vec<u32> {
        vec![match self {
            Life::Exit(code) => u32::from(*code),
            Life::Lines(..) | Life::Echo(_) | Life::Alone => 0,
            Life::Trap => 134,
            Life::Full => 1,
            Life::Signal { signal, .. } => 128 + signal,
            Life::Deaf => 128 + TERM,
            Life::Flood(..) | Life::OutOfMemory | Life::Paused(_) | Life::Unstarted | Life::Execs(_) | Life::Pod(_) => {
                128 + KILL
            }
        }]
    }

    /// Who reads its log; `None` when it has none.
    pub fn reader(&self) -> Option<Reader> {
        match self {
            Life::Lines(_, reader) | Life::Flood(_, reader) => Some(*reader),
            Life::Echo(_) => Some(Reader::Prompt),
            _ => None,
        }
    }

    /// How many lines its log has, and whether it has them all when nothing happens to it.
    pub fn log(&self) -> (u64, bool) {
        match self {
            Life::Lines(count, _) | Life::Echo(count) => (*count, true),
            _ => (ENDLESS, false),
        }
    }

    /// Whether it has an input.
    pub fn listens(&self) -> bool {
        matches!(self, Life::Echo(_) | Life::Deaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_lives_again_and_all_kinds_come() {
        let draw = |seed| {
            let mut rng = Rng::with_seed(seed);
            (0..500).map(|_| Life::draw(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        let kinds: std::collections::HashSet<_> = draw(5).iter().map(std::mem::discriminant).collect();
        assert_eq!(kinds.len(), 14);
    }

    #[test]
    fn a_life_says_its_command_its_limits_and_its_end() {
        let wants = Life::OutOfMemory.wants(WORLDS[0]);
        assert_eq!(wants.args, ["/probe01.wasm", "flood", "/dev/shm/file", "256"]);
        assert_eq!(wants.memory, Some(64 << 20));
        assert_eq!(Life::Deaf.codes(), [143]);
        assert_eq!(Life::Exit(7).codes(), [7]);
    }
}
