//! What a server's process costs the machine: processor time, page faults and switches between threads.

use std::fs;

use anyhow::{Context, Result};

/// As the kernel has counted for a process since its start (proc_pid_stat(5), proc_pid_status(5)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// In seconds.
    pub user: f64,
    /// In seconds.
    pub system: f64,
    /// Pages that were given or copied; none of them is read from a disk.
    pub faults: f64,
    /// How often one of the threads that live waited or gave way.
    pub switches: f64,
}

impl Cost {
    /// Of the process `pid` until now.
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub fn of(pid: u32) -> Result<Cost> {
        let read = |path: String| fs::read_to_string(&path).with_context(|| format!("cannot read {path}"));
        let stat = read(format!("/proc/{pid}/stat"))?;
        let mut switches = 0.0;
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
            // A thread may have ended meanwhile.
            let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            switches += switches_of(&status);
        }
        cost_of(&stat, switches, rustix::param::clock_ticks_per_second() as f64)
            .with_context(|| format!("/proc/{pid}/stat is not as proc_pid_stat(5) says: {stat}"))
    }

    /// The part of each of so many requests in what was spent after `before`.
    pub fn of_each(&self, before: &Cost, requests: usize) -> Cost {
        let each = |now: f64, before: f64| (now - before) / requests as f64;
        Cost {
            user: each(self.user, before.user),
            system: each(self.system, before.system),
            faults: each(self.faults, before.faults),
            switches: each(self.switches, before.switches),
        }
    }
}

fn cost_of(stat: &str, switches: f64, ticks: f64) -> Option<Cost> {
    // The second field is a name in parentheses, which may have any character.
    let (_, fields) = stat.rsplit_once(')')?;
    let field = |number: usize| fields.split_whitespace().nth(number - 3)?.parse::<f64>().ok();
    Some(Cost {
        user: field(14)? / ticks,
        system: field(15)? / ticks,
        faults: field(10)?,
        switches,
    })
}

fn switches_of(status: &str) -> f64 {
    let counts = status.lines().filter_map(|line| {
        let (name, count) = line.split_once(':')?;
        name.ends_with("voluntary_ctxt_switches")
            .then(|| count.trim().parse::<f64>().ok())?
    });
    counts.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_hides_no_field() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 250 0 3 0 300 150 0 0 20 0 4 0 99\n";
        let status = "Name:\ta\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n";
        let cost = cost_of(stat, switches_of(status), 100.0).unwrap();
        assert_eq!(
            cost,
            Cost {
                user: 3.0,
                system: 1.5,
                faults: 250.0,
                switches: 42.0
            }
        );
        let before = Cost { user: 1.0, ..cost };
        assert_eq!(cost.of_each(&before, 4).user, 0.5);
        assert_eq!(cost_of("7 (a) S 1", 0.0, 100.0), None);
    }

    #[test]
    fn this_very_process_has_faulted() {
        assert!(Cost::of(std::process::id()).unwrap().faults > 0.0);
    }
}
