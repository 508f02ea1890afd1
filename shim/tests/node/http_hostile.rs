//! A service whose clients misbehave, for a short time; `make bench` has them do so for a minute.

use std::net::SocketAddr;
use std::time::Duration;

use kubewasi_testbed::hostile;

use crate::guests::Service;
use crate::service::Served;

on_newest_containerd! {
    fn clients_that_misbehave_disturb_no_other_and_cost_no_more_than_a_bounded_amount_of_memory(node) {
        for service in Service::ALL {
            let flags = ["--memory-limit", "268435456"];
            let served = Served::start_with(node, service, &[], &flags, 8080);
            let address = SocketAddr::from(([127, 0, 0, 1], 8080));
            let seen = served.inside(|| hostile::clients(address, 128, Duration::from_secs(3)));
            assert!(seen.wrong.is_empty(), "{service:?}: {:#?}", seen.wrong);
            let all = [seen.answered, seen.refused, seen.reset, seen.left_half_open, seen.sipped];
            assert!(all.iter().all(|count| *count > 0), "{service:?}: {seen:?}");
            assert_eq!(served.get("/hello").status, 200, "{service:?}");
            assert_eq!(served.end(), 0, "{service:?}");
        }
    }
}
