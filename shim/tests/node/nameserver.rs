//! A name server of one answer, at port 53 of a test's network: 10.1.2.3 and fd00::3. A name that begins with `long` is
//! answered by TCP alone.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::thread;

use crate::network::Network;

/// What /etc/resolv.conf says of it.
pub const RESOLV_CONF: &[u8] = b"nameserver 127.0.0.1\noptions timeout:2 attempts:2\n";

const TRUNCATED: u8 = 0x02;

/// Serves until the test's process ends.
pub fn serve(network: &Network) {
    let socket = network.within(|| UdpSocket::bind("127.0.0.1:53").unwrap());
    let listener = network.within(|| TcpListener::bind("127.0.0.1:53").unwrap());
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let mut answer = answer(&question[..length]);
            // The first label begins behind the header and its length.
            if question[13..].starts_with(b"long") {
                answer.truncate(length);
                answer[2] |= TRUNCATED;
                answer[7] = 0;
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut length = [0; 2];
            while client.read_exact(&mut length).is_ok() {
                let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                client.read_exact(&mut question).unwrap();
                let answer = answer(&question);
                client.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                client.write_all(&answer).unwrap();
            }
        }
    });
}

/// The answer to a question of one name (RFC 1035, 4.1).
fn answer(question: &[u8]) -> Vec<u8> {
    const RECURSION: [u8; 2] = [0x81, 0x80];
    let kind = question[question.len() - 4..][..2].to_vec();
    let address: &[u8] = match kind[..] {
        [0, 1] => &[10, 1, 2, 3],
        _ => &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3],
    };
    let mut answer = question.to_vec();
    answer[2..4].copy_from_slice(&RECURSION);
    answer[6..8].copy_from_slice(&[0, 1]);
    // The name is at byte 12; class IN, a minute to live.
    answer.extend([0xc0, 12]);
    answer.extend(kind);
    answer.extend([0, 1, 0, 0, 0, 60, 0, address.len() as u8]);
    answer.extend(address);
    answer
}
