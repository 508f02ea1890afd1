//! What each container was to do, what was reported of it, and what does not fit (the verdict is pure).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// 128 + SIGKILL: how containerd reports a container whose server was killed.
const KILLED: u32 = 137;

/// What containerd told of a container, in the order in which it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    Create,
    Start,
    Paused,
    Resumed,
    OutOfMemory,
    Exit(u32),
    Delete(u32),
}

/// What became of a Create.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Creation {
    /// There was a task.
    Done,
    /// Nobody knows: containerd went away meanwhile, and afterwards there was no task.
    Unsure,
    /// There was no task.
    #[default]
    Refused,
}

/// Whose account it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Container,
    /// A process that was exec'd into a container; nobody is told of its Delete.
    Process,
}

/// The name of the account of a container's process.
pub fn process_key(id: &str, exec_id: &str) -> String {
    format!("{id}/{exec_id}")
}

/// One container's account, or one process's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub kind: Kind,
    pub creation: Creation,
    /// Its start was answered; one that was not may have happened all the same.
    pub started: bool,
    /// The codes that it may end with.
    pub codes: Vec<u32>,
    /// It ends by its memory limit.
    pub out_of_memory: bool,
    /// What Wait answered.
    pub waited: Option<u32>,
    /// What Delete answered.
    pub deleted: Option<u32>,
    /// It was deleted, and containerd went away before it had said so.
    pub delete_unsure: bool,
    /// How often servers were killed in its life.
    pub server_deaths: usize,
    pub told: Vec<Told>,
}

impl Account {
    /// Whether all that is to be told was told.
    fn complete(&self) -> bool {
        let last = |told: &Told| match self.kind {
            Kind::Container => matches!(told, Told::Delete(_)),
            Kind::Process => matches!(told, Told::Exit(_)),
        };
        self.creation != Creation::Done || self.may_be_untold() || self.told.iter().any(last)
    }

    /// Whether the end may have died with its server: containerd tells by itself of containers, and not of those whose
    /// Delete it saw answered; it never tells of processes that were exec'd.
    fn may_be_untold(&self) -> bool {
        let deleted = self.deleted.is_some() || self.delete_unsure;
        self.server_deaths > 0 && (deleted || self.kind == Kind::Process)
    }

    /// Everything that is wrong; empty when nothing was lost.
    pub fn verdict(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let exits: Vec<u32> = self
            .told
            .iter()
            .filter_map(|told| match told {
                Told::Exit(code) => Some(*code),
                _ => None,
            })
            .collect();
        // Of a container whose end was told already, containerd tells again when its server dies before its Delete.
        let least = usize::from(self.creation == Creation::Done && !self.may_be_untold());
        let most = self.server_deaths + usize::from(self.creation != Creation::Refused);
        if !(least..=most).contains(&exits.len()) {
            wrong.push(format!(
                "{} exit events, not {least} to {most}: {:?}",
                exits.len(),
                self.told
            ));
        }
        for code in exits.iter().chain(&self.waited).chain(&self.deleted) {
            let excused = *code == KILLED && (self.server_deaths > 0 || self.creation != Creation::Done);
            if !self.codes.contains(code) && !excused {
                wrong.push(format!("ended with {code}, not {:?}", self.codes));
            }
        }
        if self.server_deaths == 0 && self.creation == Creation::Done {
            self.undisturbed(&exits, &mut wrong);
        }
        wrong.dedup();
        wrong
    }

    /// What must hold of a container whose server lived.
    fn undisturbed(&self, exits: &[u32], wrong: &mut Vec<String>) {
        let answers = [self.waited, self.deleted];
        if (self.started && self.waited.is_none()) || answers.iter().flatten().any(|code| Some(code) != exits.first()) {
            wrong.push(format!(
                "Wait said {:?}, Delete {:?}, events {exits:?}",
                self.waited, self.deleted
            ));
        }
        let mut order = self.told.clone();
        order.retain(|told| !matches!(told, Told::Paused | Told::Resumed | Told::OutOfMemory));
        let kinds: Vec<_> = order.iter().map(std::mem::discriminant).collect();
        let full =
            [Told::Create, Told::Start, Told::Exit(0), Told::Delete(0)].map(|told| std::mem::discriminant(&told));
        let unstarted = [full[0], full[2], full[3]];
        let fits = match self.kind {
            Kind::Container => kinds == full || (!self.started && kinds == unstarted),
            Kind::Process => kinds == full[..3],
        };
        if !fits {
            wrong.push(format!("events out of order: {:?}", self.told));
        }
        let ran = self.told.contains(&Told::Start);
        let killed_by_limit = self.out_of_memory && ran && exits == [KILLED];
        if killed_by_limit != self.told.contains(&Told::OutOfMemory) {
            wrong.push(format!(
                "OOM event where none was due, or none where one was: {:?}",
                self.told
            ));
        }
    }
}

/// The accounts of all containers, and what was wrong so far.
#[derive(Default)]
pub struct Ledger {
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    open: HashMap<String, Account>,
    lives: usize,
    lost: Vec<String>,
}

impl Ledger {
    /// Opens the account of `id`, before anything is asked of containerd.
    pub fn open(&self, id: &str) {
        self.with(|books| books.open.insert(id.to_owned(), Account::default()));
    }

    /// Enters what the client of `id` knows at its end.
    pub fn enter(&self, id: &str, account: Account) {
        self.with(|books| {
            books.lives += usize::from(account.kind == Kind::Container);
            if let Some(open) = books.open.get_mut(id) {
                let told = std::mem::take(&mut open.told);
                *open = Account { told, ..account };
            }
        });
    }

    /// Enters what containerd told of `id`.
    pub fn tell(&self, id: &str, told: Told) {
        let known = self.with(|books| {
            let account = books.open.get_mut(id);
            account.map(|account| account.told.push(told)).is_some()
        });
        if !known {
            self.wrong(id, format!("{told:?} was told after all had been"));
        }
    }

    /// Servers are killed now: with them goes what they have not told yet, of containers that are deleted too.
    pub fn servers_die(&self) {
        self.with(|books| {
            let owed = books.open.values_mut().filter(|account| !account.complete());
            owed.for_each(|account| account.server_deaths += 1);
        });
    }

    /// Notes something that went wrong.
    pub fn wrong(&self, id: &str, what: impl std::fmt::Display) {
        let line = format!("{id}: {what}");
        eprintln!("soak: LOST {line}");
        self.with(|books| books.lost.push(line));
    }

    /// Whether nothing is outstanding.
    pub fn complete(&self) -> bool {
        self.with(|books| books.open.values().all(Account::complete))
    }

    /// Balances and closes all accounts; their clients are done.
    pub fn balance(&self) {
        let wrong: Vec<(String, String)> = self.with(|books| {
            let open: Vec<_> = books.open.drain().collect();
            open.iter()
                .flat_map(|(id, account)| account.verdict().into_iter().map(|line| (id.clone(), line)))
                .collect()
        });
        for (id, line) in wrong {
            self.wrong(&id, line);
        }
    }

    /// How many containers lived.
    pub fn lives(&self) -> usize {
        self.with(|books| books.lives)
    }

    /// How much was lost.
    pub fn lost(&self) -> usize {
        self.with(|books| books.lost.len())
    }

    fn with<T>(&self, look: impl FnOnce(&mut Books) -> T) -> T {
        look(&mut self.books.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Account {
        Account {
            creation: Creation::Done,
            started: true,
            codes: vec![7],
            waited: Some(7),
            deleted: Some(7),
            told: vec![Told::Create, Told::Start, Told::Exit(7), Told::Delete(7)],
            ..Account::default()
        }
    }

    #[test]
    fn an_ordinary_life_balances() {
        assert_eq!(good().verdict(), Vec::<String>::new());
        assert_eq!(Account::default().verdict(), Vec::<String>::new());
    }

    #[test]
    fn a_lost_or_doubled_exit_is_found() {
        let told = vec![Told::Create, Told::Start, Told::Delete(7)];
        assert!(!Account { told, ..good() }.verdict().is_empty());
        let told = vec![Told::Create, Told::Start, Told::Exit(7), Told::Exit(7), Told::Delete(7)];
        assert!(
            !Account {
                told: told.clone(),
                ..good()
            }
            .verdict()
            .is_empty()
        );
        let twice = Account {
            told,
            server_deaths: 1,
            ..good()
        };
        assert_eq!(
            twice.verdict(),
            Vec::<String>::new(),
            "containerd tells it again when the server dies"
        );
        assert!(!Account { waited: None, ..good() }.verdict().is_empty());
        assert!(
            !Account {
                deleted: Some(0),
                ..good()
            }
            .verdict()
            .is_empty()
        );
    }

    #[test]
    fn a_wrong_code_is_found_unless_the_server_was_killed() {
        let killed = Account {
            waited: Some(137),
            deleted: Some(137),
            told: vec![Told::Create, Told::Start, Told::Exit(137), Told::Delete(137)],
            ..good()
        };
        assert!(!killed.verdict().is_empty());
        assert_eq!(
            Account {
                server_deaths: 1,
                waited: None,
                ..killed
            }
            .verdict(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn events_out_of_order_and_missing_oom_events_are_found() {
        let told = vec![Told::Create, Told::Exit(7), Told::Start, Told::Delete(7)];
        assert!(!Account { told, ..good() }.verdict().is_empty());
        let oom = Account {
            out_of_memory: true,
            codes: vec![137],
            waited: Some(137),
            deleted: Some(137),
            told: vec![
                Told::Create,
                Told::Start,
                Told::OutOfMemory,
                Told::Exit(137),
                Told::Delete(137),
            ],
            ..good()
        };
        assert_eq!(oom.verdict(), Vec::<String>::new());
        let told = vec![Told::Create, Told::Start, Told::Exit(137), Told::Delete(137)];
        assert!(!Account { told, ..oom }.verdict().is_empty());
    }

    #[test]
    fn what_a_killed_server_had_not_told_of_a_deleted_container_is_excused() {
        let untold = Account {
            told: vec![Told::Create, Told::Start],
            ..good()
        };
        let lost = |server_dies: bool| {
            let ledger = Ledger::default();
            ledger.open("a");
            ledger.enter("a", untold.clone());
            if server_dies {
                ledger.servers_die();
            }
            ledger.balance();
            ledger.lost()
        };
        assert!(lost(false) > 0);
        assert_eq!(lost(true), 0);
    }

    #[test]
    fn an_end_may_be_untold_where_containerd_left_before_it_answered_the_delete_and_the_server_died() {
        let untold = Account {
            waited: None,
            deleted: None,
            delete_unsure: true,
            server_deaths: 1,
            told: vec![Told::Create, Told::Start],
            ..good()
        };
        assert_eq!(untold.verdict(), Vec::<String>::new());
        for told_by_containerd in [
            Account {
                delete_unsure: false,
                ..untold.clone()
            },
            Account {
                server_deaths: 0,
                ..untold
            },
        ] {
            assert!(!told_by_containerd.verdict().is_empty());
        }
    }

    #[test]
    fn a_process_has_no_delete_event() {
        let told = vec![Told::Create, Told::Start, Told::Exit(7)];
        let process = Account {
            kind: Kind::Process,
            told,
            ..good()
        };
        assert_eq!(process.verdict(), Vec::<String>::new());
        assert!(process.complete());
        assert!(
            !Account {
                kind: Kind::Process,
                ..good()
            }
            .verdict()
            .is_empty()
        );
    }

    #[test]
    fn an_exit_after_the_balance_is_lost() {
        let ledger = Ledger::default();
        ledger.open("a");
        ledger.enter("a", Account::default());
        ledger.balance();
        assert_eq!((ledger.lives(), ledger.lost()), (1, 0));
        ledger.tell("a", Told::Exit(7));
        assert_eq!(ledger.lost(), 1);
    }
}
