//! The same exchanges as `network` has, and an HTTP client, by WASI 0.3's own interfaces.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use futures::join;
use wasip3::http::client;
use wasip3::http::types::{Fields, Method, Request, Response, Scheme};
use wasip3::sockets::ip_name_lookup::resolve_addresses;
use wasip3::sockets::types::{
    IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress, TcpSocket, UdpSocket,
};
use wasip3::wit_bindgen::StreamReader;
use wasip3::{wit_future, wit_stream};

/// Runs `command` if it is one of these.
pub async fn perform(command: &str, first: &str, second: &str) -> Option<Result<(), String>> {
    Some(match command {
        "tcp-client" => tcp_client(first, second).await,
        "tcp-server" => tcp_server(first).await,
        "udp-client" => udp_client(first, second).await,
        "udp-server" => udp_server(first).await,
        "resolve" => resolve(first).await,
        "get" => get(first, second).await,
        "post" => post(first, second).await,
        _ => return None,
    })
}

fn told(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

async fn tcp_client(address: &str, text: &str) -> Result<(), String> {
    let address: SocketAddr = address.parse().map_err(told)?;
    let socket = TcpSocket::create(family(address)).map_err(told)?;
    socket.connect(of(address)).await.map_err(told)?;
    let (answer, received) = socket.receive();
    let (mut writer, reader) = wit_stream::new();
    let sent = socket.send(reader);
    let write = async {
        writer.write_all(text.as_bytes().to_vec()).await;
        drop(writer);
    };
    let ((), answer) = join!(write, answer.collect());
    sent.await.map_err(told)?;
    received.await.map_err(told)?;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}

async fn tcp_server(address: &str) -> Result<(), String> {
    let address: SocketAddr = address.parse().map_err(told)?;
    let socket = TcpSocket::create(family(address)).map_err(told)?;
    socket.bind(of(address)).map_err(told)?;
    let mut clients = socket.listen().map_err(told)?;
    say("listening")?;
    let client = clients.next().await.ok_or("nobody came")?;
    let (text, _received) = client.receive();
    let text = text.collect().await;
    let (mut writer, reader) = wit_stream::new();
    let sent = client.send(reader);
    writer.write_all(text).await;
    drop(writer);
    sent.await.map_err(told)
}

async fn udp_client(address: &str, text: &str) -> Result<(), String> {
    let address: SocketAddr = address.parse().map_err(told)?;
    let socket = UdpSocket::create(family(address)).map_err(told)?;
    socket.connect(of(address)).map_err(told)?;
    socket.send(text.as_bytes().to_vec(), None).await.map_err(told)?;
    let (answer, _) = socket.receive().await.map_err(told)?;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}

async fn udp_server(address: &str) -> Result<(), String> {
    let address: SocketAddr = address.parse().map_err(told)?;
    let socket = UdpSocket::create(family(address)).map_err(told)?;
    socket.bind(of(address)).map_err(told)?;
    say("listening")?;
    let (text, from) = socket.receive().await.map_err(told)?;
    socket.send(text, Some(from)).await.map_err(told)
}

async fn resolve(name: &str) -> Result<(), String> {
    let found = resolve_addresses(name.to_owned()).await.map_err(told)?;
    let mut found: Vec<IpAddr> = found
        .into_iter()
        .map(|address| match address {
            IpAddress::Ipv4((a, b, c, d)) => IpAddr::from([a, b, c, d]),
            IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => IpAddr::from([a, b, c, d, e, f, g, h]),
        })
        .collect();
    found.sort();
    found.dedup();
    found.iter().for_each(|address| println!("{address}"));
    Ok(())
}

/// Asks for `url` so many times, one after the other, and prints each answer.
async fn get(url: &str, times: &str) -> Result<(), String> {
    for _ in 0..times.parse().unwrap_or(1) {
        let request = request(url, None)?;
        print(client::send(request).await.map_err(told)?).await?;
    }
    Ok(())
}

/// Sends so many bytes to `url`, a piece after the other, and prints the answer.
async fn post(url: &str, length: &str) -> Result<(), String> {
    let length = length.parse().map_err(told)?;
    let (mut writer, reader) = wit_stream::new();
    let request = request(url, Some(reader))?;
    request.set_method(&Method::Post).map_err(told)?;
    let write = async {
        for piece in vec![b'.'; length].chunks(4096) {
            writer.write_all(piece.to_vec()).await;
        }
        drop(writer);
    };
    let ((), response) = join!(write, client::send(request));
    print(response.map_err(told)?).await
}

fn request(url: &str, body: Option<StreamReader<u8>>) -> Result<Request, String> {
    let (scheme, authority, path) = guests::services::parts(url).ok_or("no URL")?;
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), body, no_trailers, None);
    drop(trailers);
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    request.set_scheme(Some(&scheme)).map_err(told)?;
    request.set_authority(Some(authority)).map_err(told)?;
    request.set_path_with_query(Some(path)).map_err(told)?;
    Ok(request)
}

async fn print(response: Response) -> Result<(), String> {
    println!("{}", response.get_status_code());
    let (processed, consumed) = wit_future::new(|| Ok(()));
    let (body, _trailers) = Response::consume_body(response, consumed);
    let body = body.collect().await;
    drop(processed);
    io::stdout().write_all(&body).map_err(told)
}

fn say(line: &str) -> Result<(), String> {
    println!("{line}");
    io::stdout().flush().map_err(told)
}

fn family(address: SocketAddr) -> IpAddressFamily {
    match address {
        SocketAddr::V4(_) => IpAddressFamily::Ipv4,
        SocketAddr::V6(_) => IpAddressFamily::Ipv6,
    }
}

fn of(address: SocketAddr) -> IpSocketAddress {
    let port = address.port();
    match address {
        SocketAddr::V4(v4) => {
            let [a, b, c, d] = v4.ip().octets();
            IpSocketAddress::Ipv4(Ipv4SocketAddress {
                port,
                address: (a, b, c, d),
            })
        }
        SocketAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.ip().segments();
            IpSocketAddress::Ipv6(Ipv6SocketAddress {
                port,
                flow_info: 0,
                address: (a, b, c, d, e, f, g, h),
                scope_id: 0,
            })
        }
    }
}
