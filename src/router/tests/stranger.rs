//! An unmodified SMB client on the other side: smbclient negotiates with this code over TCP on
//! 127.0.0.1, where only the framing differs from SMB Direct.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{poll, PollFd, PollFlags, Timespec};

use super::answer::Answer;
use super::*;

/// Ends a test that hangs; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// smbclient, killed with the value.
struct Smbclient(Child);

impl Smbclient {
    /// Starts it with exactly one dialect; none, with a reason printed, when it is not installed.
    fn connect(port: u16, protocol: &str) -> Option<Self> {
        let child = Command::new("smbclient")
            .args([
                "//127.0.0.1/share",
                "-p",
                &port.to_string(),
                "-s",
                "/dev/null",
                "-U",
                "a%b",
            ])
            .arg(format!("--option=client min protocol={protocol}"))
            .arg(format!("--option=client max protocol={protocol}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match child {
            Ok(child) => Some(Self(child)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("skipped: smbclient is not installed (apt-get install smbclient)");
                None
            }
            Err(error) => panic!("smbclient: {error}"),
        }
    }

    /// All it printed until it ended, which it does by itself when its connection is gone.
    fn output(mut self) -> String {
        let mut text = String::new();
        self.0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        self.0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }
}

impl Drop for Smbclient {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for the connection, no longer than [`PATIENCE`].
fn accept(listener: &TcpListener) -> TcpStream {
    let patience = Timespec::try_from(PATIENCE).unwrap();
    let ready = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "smbclient does not connect");
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut pdu = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut pdu).unwrap();
    pdu
}

fn send(stream: &mut TcpStream, pdu: &[u8]) {
    let length = u32::try_from(pdu.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], pdu].concat()).unwrap();
}

#[test]
fn test_smbclient_takes_every_dialect() {
    for (protocol, dialect) in [
        ("SMB3_00", 0x0300),
        ("SMB3_02", 0x0302),
        ("SMB3_11", 0x0311),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let Some(client) = Smbclient::connect(port, protocol) else {
            return;
        };
        let mut stream = accept(&listener);

        let pdu = receive(&mut stream);
        let request = parse_negotiate(&pdu).unwrap();
        let response = answer_negotiate(&request, &config(), &INPUTS).unwrap();
        assert_eq!(Answer::read(&pdu, &response).dialect, dialect);
        send(&mut stream, &response);

        // That it goes on to authenticate says that it took the answer.
        let pdu = receive(&mut stream);
        let setup = parse_session_setup(&pdu).unwrap();
        assert!(!setup.binding);
        let refusal = setup.route(|_| true).unwrap_err();
        assert_eq!(refusal, RouteError::NewSession);
        send(&mut stream, &refusal.response(&pdu).unwrap());

        let said = client.output();
        assert!(
            said.contains("NT_STATUS_REQUEST_NOT_ACCEPTED"),
            "{protocol}: {said}"
        );
    }
}

#[test]
fn test_smbclient_understands_refusals() {
    let config = ServerConfig {
        min_dialect: Dialect::Smb311,
        ..config()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(client) = Smbclient::connect(port, "SMB3_02") else {
        return;
    };
    let mut stream = accept(&listener);
    let pdu = receive(&mut stream);
    let refusal = answer_negotiate(&parse_negotiate(&pdu).unwrap(), &config, &INPUTS).unwrap_err();
    assert_eq!(refusal.reason, RouteError::NoCommonDialect);
    send(&mut stream, &refusal.pdu);
    let said = client.output();
    assert!(said.contains("NT_STATUS_NOT_SUPPORTED"), "{said}");
}
