//! What a service's options come to: how many threads, instances and requests (pure).

use std::io;
use std::num::NonZero;

use kubewasi_options::Http;

use crate::compile::World;

/// As many requests one 0.3 instance answers at the same time; 0.2 has no way to.
const CONCURRENT: usize = 16;

/// Until how many requests a 0.3 instance is recycled when nothing is asked: its memory only ever grows.
const RECYCLED: usize = 128;

/// How instances are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// So many requests, then it is recycled.
    pub requests: usize,
    /// So many of them at the same time.
    pub concurrent: usize,
}

/// How instances of `world` are used: by default each for one request in 0.2, and for many, at the same time, in 0.3.
pub fn reuse(requests: Option<u64>, world: World) -> Reuse {
    let concurrent = match world {
        World::Http03 => CONCURRENT,
        _ => 1,
    };
    let requests = match requests {
        Some(requests) => usize::try_from(requests).unwrap_or(usize::MAX),
        None if concurrent > 1 => RECYCLED,
        None => 1,
    };
    Reuse {
        requests,
        concurrent: concurrent.min(requests),
    }
}

/// So many threads serve: one for each whole or begun cpu of the limit, in thousandths of one, and no more than the
/// process may run on.
pub fn threads(limit: Option<u64>, parallelism: io::Result<NonZero<usize>>) -> usize {
    let most = parallelism.map_or(1, NonZero::get);
    let limit = limit.map_or(most, |limit| usize::try_from(limit.div_ceil(1000)).unwrap_or(most));
    limit.clamp(1, most)
}

/// Whether each thread has a cpu that nobody takes away for what it uses: a limit of less, or of a part more, is a quota
/// that looking for requests would use up.
pub fn has_whole_cpus(limit: Option<u64>) -> bool {
    limit.is_none_or(|limit| limit > 0 && limit.is_multiple_of(1000))
}

/// So many instances a service of `world` may have; `None` when it is no service. Twice what may be asked at the same
/// time: an instance ends after its answer does, and one that is kept on a thread is none for the others.
pub fn instances(world: World, options: &Http) -> Option<u32> {
    match world {
        World::Http02 | World::Http03 => Some(u32::try_from(options.max_concurrent_requests * 2).unwrap_or(u32::MAX)),
        World::Module | World::Command02 | World::Command03 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_of_0_2_is_fresh_and_one_of_0_3_recycled_unless_it_is_said() {
        let reuse = |requests, world| {
            let reuse = super::reuse(requests, world);
            (reuse.requests, reuse.concurrent)
        };
        assert_eq!(reuse(None, World::Http02), (1, 1));
        assert_eq!(reuse(None, World::Http03), (128, 16));
        assert_eq!(reuse(Some(1), World::Http03), (1, 1));
        assert_eq!(reuse(Some(1000), World::Http02), (1000, 1));
        assert_eq!(reuse(Some(4), World::Http03), (4, 4));
    }

    #[test]
    fn threads_follow_the_cpu_limit_and_the_machine() {
        let threads = |limit, cpus| super::threads(limit, Ok(NonZero::new(cpus).unwrap()));
        assert_eq!(threads(Some(20), 8), 1);
        assert_eq!(threads(Some(1000), 8), 1);
        assert_eq!(threads(Some(1001), 8), 2);
        assert_eq!(threads(Some(64_000), 8), 8);
        assert_eq!(threads(None, 8), 8);
        assert_eq!(super::threads(None, Err(io::ErrorKind::Unsupported.into())), 1);
    }

    #[test]
    fn a_limit_of_whole_cpus_or_none_leaves_time_to_look_for_requests() {
        assert!([None, Some(1000), Some(4000)].into_iter().all(has_whole_cpus));
        assert!(![Some(20), Some(100), Some(1500)].into_iter().any(has_whole_cpus));
    }

    #[test]
    fn only_a_service_has_a_pool() {
        let options = Http {
            max_concurrent_requests: 10,
            ..Http::default()
        };
        assert_eq!(instances(World::Http03, &options), Some(20));
        assert_eq!(instances(World::Command02, &options), None);
    }
}
