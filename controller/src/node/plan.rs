//! What is to be done on a host for a wish. Pure: what was observed goes in, a plan comes out.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::api::wasm_node::{Plan, Step, Wish, WishedState, digest};
use crate::api::wasm_runtime::ContainerdRestart;

use super::config::Change;

/// What was found on the host.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The SHA-256 of the shim that the agent was started with.
    pub staged: String,
    /// Whether the host has that one.
    pub has_staged: bool,
    /// The SHA-256 of the shim that the stable path leads to.
    pub current: Option<String>,
    /// The options beside the staged shim.
    pub options: Option<String>,
    /// The change of configuration that the wish needs.
    pub change: Option<Change>,
    /// Whether the running containerd lists the handler, and has it lead to the stable path.
    pub listed: bool,
    /// Whether anything of the runtime is on the host.
    pub has_folder: bool,
    /// The folder of compiled artifacts that goes with the last runtime of a host.
    pub cache: Option<PathBuf>,
}

/// A plan with all that is needed to carry it out, also by a later agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// What is reported, and permitted.
    pub plan: Plan,
    /// The wish.
    pub wish: String,
    pub handler: String,
    /// Whether the handler is to be there in the end.
    pub installs: bool,
    /// The SHA-256 of the shim to switch to.
    pub shim: String,
    /// The options file, as text.
    pub options: String,
    pub change: Option<Change>,
    pub cache: Option<PathBuf>,
    /// How many plans the agent has begun before this one: a repeated plan has another hash, so that a permit is for
    /// one attempt.
    #[serde(default)]
    pub number: u64,
}

impl Planned {
    /// Whether there is nothing to do.
    pub fn is_done(&self) -> bool {
        self.plan.steps.is_empty()
    }

    pub fn has(&self, step: Step) -> bool {
        self.plan.steps.contains(&step)
    }

    /// The plan after one for the same wish that failed: a host that has everything and where it did not work is not done.
    pub fn once_more(mut self) -> Planned {
        if self.installs && self.is_done() {
            self.plan.steps.push(Step::Prove);
            return self.named();
        }
        self
    }

    /// The plan of an agent that has begun `number` plans before.
    pub fn numbered(mut self, number: u64) -> Planned {
        self.number = number;
        self.named()
    }

    /// With the hash of all that it does, whatever its hash was before.
    fn named(mut self) -> Planned {
        self.plan.hash.clear();
        self.plan.hash = digest(&serde_json::json!(self).to_string());
        self
    }
}

/// Plans for `wish`.
pub fn plan(wish: &Wish, observed: Observed) -> Planned {
    let options = wish.options.to_toml();
    let mut steps = Vec::new();
    let mut add = |needed: bool, step: Step| {
        if needed {
            steps.push(step);
        }
    };
    let installs = wish.state == WishedState::Installed;
    // A running containerd that differs from its files is brought in line by a restart too.
    let differs = observed.change.as_ref().is_some_and(|change| change.is_seen) || observed.listed != installs;
    let restarts = differs && wish.containerd_restart == ContainerdRestart::Rolling;
    if installs {
        add(!observed.has_staged, Step::StageShim);
        add(observed.options.as_ref() != Some(&options), Step::WriteOptions);
        add(observed.current.as_ref() != Some(&observed.staged), Step::SwitchShim);
        add(observed.change.is_some(), Step::WriteConfig);
        add(restarts, Step::RestartContainerd);
    } else {
        add(observed.change.is_some(), Step::RemoveConfig);
        add(restarts, Step::RestartContainerd);
        add(observed.has_folder, Step::RemoveShim);
    }
    if installs && (differs || !steps.is_empty()) {
        steps.push(Step::Prove);
    }
    Planned {
        plan: Plan {
            hash: String::new(),
            steps,
        },
        wish: wish.hash(),
        handler: wish.handler.clone(),
        installs,
        shim: observed.staged,
        options,
        change: observed.change,
        cache: observed.cache,
        number: 0,
    }
    .named()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ShimOptions;
    use crate::api::wasm_runtime::ImagePull;
    use crate::node::config::{Edit, Handler, Ours};

    fn wish(state: WishedState) -> Wish {
        Wish {
            state,
            handler: "wasi".into(),
            shim_image: "shim:1".into(),
            options: ShimOptions::default(),
            containerd_restart: ContainerdRestart::Rolling,
            image_pull: ImagePull::Unchanged,
        }
    }

    fn change() -> Option<Change> {
        Some(Change {
            edits: vec![Edit {
                file: "/etc/containerd/config.toml".into(),
                old: Some("old".into()),
                new: Some("new".into()),
            }],
            ours: Ours::new(&Handler::example()),
            is_seen: true,
        })
    }

    fn fresh() -> Observed {
        Observed {
            staged: "aa".into(),
            has_staged: false,
            current: None,
            options: None,
            change: change(),
            listed: false,
            has_folder: false,
            cache: None,
        }
    }

    fn installed() -> Observed {
        Observed {
            staged: "aa".into(),
            has_staged: true,
            current: Some("aa".into()),
            options: Some(String::new()),
            change: None,
            listed: true,
            has_folder: true,
            cache: None,
        }
    }

    #[track_caller]
    fn steps(wish: &Wish, observed: Observed) -> Vec<Step> {
        plan(wish, observed).plan.steps
    }

    #[test]
    fn a_fresh_host_gets_everything_and_the_proof_comes_last() {
        use Step::*;
        let all = [
            StageShim,
            WriteOptions,
            SwitchShim,
            WriteConfig,
            RestartContainerd,
            Prove,
        ];
        assert_eq!(steps(&wish(WishedState::Installed), fresh()), all);
    }

    #[test]
    fn nothing_is_done_where_everything_is() {
        assert_eq!(steps(&wish(WishedState::Installed), installed()), []);
        let gone = Observed {
            change: None,
            ..fresh()
        };
        assert_eq!(steps(&wish(WishedState::Removed), gone), []);
    }

    #[test]
    fn a_host_that_has_everything_is_proven_once_more_where_that_failed() {
        let failed = |observed, state| plan(&wish(state), observed).once_more();
        let proof = failed(installed(), WishedState::Installed);
        assert_eq!(proof.plan.steps, [Step::Prove]);
        assert_ne!(
            proof.plan.hash,
            plan(&wish(WishedState::Installed), installed()).plan.hash
        );
        let fresh_plan = plan(&wish(WishedState::Installed), fresh());
        assert_eq!(failed(fresh(), WishedState::Installed), fresh_plan);
        let gone = Observed {
            change: None,
            ..fresh()
        };
        assert!(failed(gone, WishedState::Removed).is_done());
    }

    #[test]
    fn a_new_shim_or_new_options_need_no_restart() {
        use Step::*;
        let upgrade = Observed {
            staged: "bb".into(),
            has_staged: false,
            options: None,
            ..installed()
        };
        assert_eq!(
            steps(&wish(WishedState::Installed), upgrade),
            [StageShim, WriteOptions, SwitchShim, Prove]
        );
        let options = Observed {
            options: Some("log = \"debug\"\n".into()),
            ..installed()
        };
        assert_eq!(steps(&wish(WishedState::Installed), options), [WriteOptions, Prove]);
    }

    #[test]
    fn a_containerd_that_was_not_restarted_since_is() {
        let stale = Observed {
            listed: false,
            ..installed()
        };
        assert_eq!(
            steps(&wish(WishedState::Installed), stale),
            [Step::RestartContainerd, Step::Prove]
        );
    }

    #[test]
    fn removal_takes_the_configuration_first_and_the_shim_last() {
        use Step::*;
        let observed = Observed {
            change: change(),
            ..installed()
        };
        assert_eq!(
            steps(&wish(WishedState::Removed), observed),
            [RemoveConfig, RestartContainerd, RemoveShim]
        );
    }

    #[test]
    fn a_file_that_containerd_does_not_read_is_cleaned_without_a_restart() {
        use Step::*;
        let mut unseen = change();
        unseen.as_mut().unwrap().is_seen = false;
        let observed = Observed {
            change: unseen,
            listed: false,
            ..installed()
        };
        assert_eq!(steps(&wish(WishedState::Removed), observed), [RemoveConfig, RemoveShim]);
    }

    #[test]
    fn containerd_is_not_restarted_where_that_is_somebody_elses() {
        use Step::*;
        let mut wish = wish(WishedState::Installed);
        wish.containerd_restart = ContainerdRestart::Never;
        assert_eq!(
            steps(&wish, fresh()),
            [StageShim, WriteOptions, SwitchShim, WriteConfig, Prove]
        );
    }

    #[test]
    fn the_hash_tells_plans_apart_by_all_that_they_do() {
        let wish = wish(WishedState::Installed);
        let hash = |observed| plan(&wish, observed).plan.hash;
        assert_eq!(hash(fresh()), hash(fresh()));
        let mut other = change().unwrap();
        other.edits[0].old = Some("edited since".into());
        let changed = Observed {
            change: Some(other),
            ..fresh()
        };
        assert_ne!(hash(fresh()), hash(changed));
        let shim = Observed {
            staged: "bb".into(),
            ..fresh()
        };
        assert_ne!(hash(fresh()), hash(shim));
        let again = plan(&wish, fresh()).numbered(1);
        assert_ne!(hash(fresh()), again.plan.hash, "a permit is for one attempt");
    }
}
