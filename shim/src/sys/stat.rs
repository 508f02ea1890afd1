//! A process as its `/proc/<pid>/stat` shows it (proc(5)).

use std::fmt::Display;
use std::fs;
use std::io;
use std::time::Duration;

/// The text of the file; each accessor says `None` when the field is not there.
pub struct Stat(String);

impl From<String> for Stat {
    fn from(text: String) -> Stat {
        Stat(text)
    }
}

impl Stat {
    /// This process.
    ///
    /// # Errors
    ///
    /// When `/proc` is not there.
    pub fn own() -> io::Result<Stat> {
        Stat::of("self")
    }

    /// The process `pid`.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none.
    pub fn of(pid: impl Display) -> io::Result<Stat> {
        Ok(Stat(fs::read_to_string(format!("/proc/{pid}/stat"))?))
    }

    /// The name in parentheses, which may hold anything, parentheses too.
    pub fn name(&self) -> Option<&str> {
        Some(self.0.rsplit_once(") ")?.0.split_once('(')?.1)
    }

    /// Whether it has ended and waits for its parent: it holds nothing any more.
    pub fn is_zombie(&self) -> bool {
        self.field(3).is_some_and(|state| state.starts_with(['Z', 'X']))
    }

    pub fn parent(&self) -> Option<i32> {
        self.field(4)?.parse().ok()
    }

    /// The session, by its leader's pid.
    pub fn session(&self) -> Option<i32> {
        self.field(6)?.parse().ok()
    }

    /// What all its threads have used, in user and in kernel mode.
    pub fn processor_time(&self) -> Option<Duration> {
        let [user, kernel] = [14, 15].map(|number| self.field(number).and_then(|ticks| ticks.parse::<u64>().ok()));
        let milliseconds = (user? + kernel?).saturating_mul(1000) / rustix::param::clock_ticks_per_second();
        Some(Duration::from_millis(milliseconds))
    }

    pub fn threads(&self) -> Option<usize> {
        self.field(20)?.parse().ok()
    }

    /// In clock ticks since boot: with the pid it names a process for ever.
    pub fn started(&self) -> Option<u64> {
        self.field(22)?.parse().ok()
    }

    /// A field by its number in proc(5), counted behind the name.
    fn field(&self, number: usize) -> Option<&str> {
        self.0.rsplit_once(") ")?.1.split(' ').nth(number.checked_sub(3)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_a_command_with_parentheses() {
        let stat = Stat::from("7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 99".to_owned());
        assert_eq!(stat.threads(), Some(3));
        assert_eq!(
            (stat.name(), stat.parent(), stat.started()),
            (Some("a) b"), Some(1), Some(99))
        );
        assert!(!stat.is_zombie());
    }

    #[test]
    fn the_processor_time_is_that_of_user_and_kernel_mode() {
        let stat = Stat::from("7 (a) R 1 7 7 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 3 0 99".to_owned());
        let ticks = 300 / rustix::param::clock_ticks_per_second();
        assert_eq!(stat.processor_time(), Some(Duration::from_secs(ticks)));
    }
}
