//! The probe as a `wasi:cli/command` 0.3 component; `stream` writes its standard input back through 0.3's own streams.

use std::future::IntoFuture;

use futures::join;
use wasip3::cli::{stderr, stdout};

mod network03;

struct Probe;

wasip3::cli::command::export!(Probe);

impl wasip3::exports::cli::run::Guest for Probe {
    async fn run() -> Result<(), ()> {
        let mut args = std::env::args().skip(1);
        match args.next().as_deref() {
            Some("stream") => {
                let text = guests::stdin().map_err(drop)?;
                let (mut writer, reader) = wasip3::wit_stream::new();
                let write = async move { drop(writer.write_all(text).await) };
                join!(stdout::write_via_stream(reader).into_future(), write)
                    .0
                    .map_err(drop)
            }
            Some("complain") => {
                let (mut writer, reader) = wasip3::wit_stream::new();
                let write = async move { drop(writer.write_all(b"0.3 says no\n".to_vec()).await) };
                join!(stderr::write_via_stream(reader).into_future(), write)
                    .0
                    .map_err(drop)?;
                Err(())
            }
            command => {
                let [first, second] = [(); 2].map(|()| args.next().unwrap_or_default());
                match network03::perform(command.unwrap_or_default(), &first, &second).await {
                    Some(done) => done.map_err(|error| eprintln!("probe {error}")),
                    None => {
                        guests::run();
                        Ok(())
                    }
                }
            }
        }
    }
}
