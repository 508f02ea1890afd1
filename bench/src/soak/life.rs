//! The kinds of lives that containers lead, drawn by chance (pure).

use std::time::Duration;

use fastrand::Rng;

use crate::lines::Reader;
use crate::spec::Wants;

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
    /// Fills more memory than it may have.
    OutOfMemory,
    /// Is paused for a while, and killed afterwards.
    Paused(Duration),
    /// Is deleted before its start.
    Unstarted,
    /// May have one process and no more.
    Alone,
    /// Holds a pod's namespaces while these live in it.
    Pod(Vec<Life>),
}

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
        match rng.u8(0..26) {
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
            _ => Life::Pod((0..rng.u8(1..4)).map(|_| Life::draw_member(rng)).collect()),
        }
    }

    /// A life in a pod.
    fn draw_member(rng: &mut Rng) -> Life {
        loop {
            let life = Life::draw(rng);
            if !matches!(life, Life::Pod(_)) {
                return life;
            }
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

    /// What its spec says, for a probe of `world`; the pod is added by whoever knows it.
    pub fn wants(&self, world: &str) -> Wants {
        let command = match self {
            Life::Exit(code) => format!("exit-with-code {code}"),
            Life::Trap => "trap".into(),
            Life::Lines(count, _) => format!("lines {count}"),
            Life::Flood(..) => format!("lines {ENDLESS}"),
            Life::Signal { busy: true, .. } | Life::Paused(_) => "spin".into(),
            Life::Signal { busy: false, .. } | Life::Deaf | Life::Unstarted => "idle".into(),
            Life::Echo(_) => "cat".into(),
            Life::OutOfMemory => "fill 256".into(),
            Life::Alone => "exit-with-code 0".into(),
            // Of a sandbox nothing is run.
            Life::Pod(_) => "pause".into(),
        };
        let args = [format!("/{world}")]
            .into_iter()
            .chain(command.split(' ').map(str::to_owned));
        Wants {
            args: args.collect(),
            memory: (*self == Life::OutOfMemory).then_some(64 << 20),
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
            Life::Signal { signal, .. } => 128 + signal,
            Life::Deaf => 128 + TERM,
            Life::Flood(..) | Life::OutOfMemory | Life::Paused(_) | Life::Unstarted | Life::Pod(_) => 128 + KILL,
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
        assert_eq!(kinds.len(), 12);
    }

    #[test]
    fn a_life_says_its_command_its_limits_and_its_end() {
        let wants = Life::OutOfMemory.wants(WORLDS[0]);
        assert_eq!(wants.args, ["/probe01.wasm", "fill", "256"]);
        assert_eq!(wants.memory, Some(64 << 20));
        assert_eq!(Life::Deaf.codes(), [143]);
        assert_eq!(Life::Exit(7).codes(), [7]);
    }
}
