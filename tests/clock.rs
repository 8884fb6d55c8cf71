//! The engine's clock is monotonic: steps of the wall clock change nothing.
//!
//! The engine runs under a small library that moves CLOCK_REALTIME for it alone. That it does is seen
//! in the SystemTime of the NEGOTIATE response that the engine makes.

#[path = "common/engine_host.rs"]
mod common;
#[path = "common/engine_process.rs"]
mod engine_process;

use std::io::Read as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

use common::{connect_and_send, negotiate, open_at, until_status, wait_for, PATIENCE};
use engine_process::{Bystanders, EngineProcess};
use smbdirect::client::{EventKind, Handle};
use smbdirect::ipc::Params;

/// What moves the clock: seconds in a file, as an 8-byte integer.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *offset;

__attribute__((constructor)) static void start(void)
{
	int fd = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
	void *map = mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0);

	if (fd < 0 || map == MAP_FAILED) {
		abort();
	}
	offset = map;
}

int clock_gettime(clockid_t id, struct timespec *now)
{
	static int (*real)(clockid_t, struct timespec *);
	int result;

	if (real == NULL) {
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	}
	result = real(id, now);
	if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
		now->tv_sec += *offset;
	}
	return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec fine;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &fine);
	now->tv_sec = fine.tv_sec;
	now->tv_usec = fine.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *out)
{
	struct timespec fine;

	clock_gettime(CLOCK_REALTIME, &fine);
	if (out != NULL) {
		*out = fine.tv_sec;
	}
	return fine.tv_sec;
}
"#;

/// Compiles the library. `None`: there is no compiler.
fn shim(directory: &Path) -> Option<PathBuf> {
    let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
    std::fs::write(&source, SHIM).unwrap();
    let output = Command::new("gcc")
        .args(["-std=c11", "-Wall", "-Wextra", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl")
        .output()
        .ok()?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    Some(library)
}

/// Seconds since 1970 in the NEGOTIATE response that the engine makes: `[MS-SMB2] 2.2.4`, SystemTime.
fn engine_time(engine: &EngineProcess, address: std::net::SocketAddr) -> i64 {
    let mut client: Handle = open_at(&engine.socket, false);
    connect_and_send(&mut client, address, &negotiate([5; 16], &[0x0300]));
    let response = wait_for(&mut client, EventKind::PduReceived).1;
    let time = u64::from_le_bytes(response[104..112].try_into().unwrap());
    (time / 10_000_000) as i64 - 11_644_473_600
}

#[test]
fn steps_of_the_wall_clock_change_nothing() {
    let name = "steps_of_the_wall_clock_change_nothing";
    let directory = std::env::temp_dir().join(format!("smbdirect-clock-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let Some(library) = shim(&directory) else {
        println!("SKIP: {name}: gcc is not installed");
        std::fs::remove_dir_all(&directory).unwrap();
        return;
    };
    let file = directory.join("offset");
    let step = |seconds: i64| {
        // In place: the engine has mapped it.
        use std::os::unix::fs::FileExt as _;
        let open = std::fs::File::options().write(true).open(&file).unwrap();
        open.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    };
    std::fs::write(&file, [0; 8]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_smbdirect"));
    command
        .env("LD_PRELOAD", &library)
        .env("CLOCK_OFFSET", &file);
    let mut engine = EngineProcess::spawn_with(command, directory.join("engine.sock"), &[]);
    let mut parent = open_at(&engine.socket, true);
    let params = Params {
        // The shortest there is, so that keepalives are under way at each step.
        keepalive_interval_msec: 1000,
        ..Params::default()
    };
    parent.set_params(&params).unwrap();
    let address = common::listen(&mut parent);
    let mut bystanders = Bystanders::new(&engine, address);
    let answering = Params {
        answer_negotiate: true,
        security_blob: b"security-blob".to_vec(),
        ..params.clone()
    };
    let real = |shift: i64| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_secs() as i64 + shift
    };
    const YEAR: i64 = 365 * 86_400;
    // A stranger has 5 seconds for its MPA request, whatever happens.
    let start = Instant::now();
    let mut stranger = TcpStream::connect(address).unwrap();
    for shift in [10 * YEAR, -10 * YEAR, 3600, -3600, 0] {
        // An offer waits while the clock moves.
        parent.set_params(&params).unwrap();
        let mut offered = open_at(&engine.socket, false);
        connect_and_send(&mut offered, address, &negotiate([9; 16], &[0x0300]));
        let token = wait_for(&mut parent, EventKind::Offered).0.token;
        step(shift);
        // The clock of the engine has moved.
        parent.set_params(&answering).unwrap();
        let told = engine_time(&engine, address);
        assert!((told - real(shift)).abs() < 120, "{told}, moved by {shift}");
        bystanders.check();
        // The offer has not run out.
        parent.accept(token).unwrap();
        wait_for(&mut parent, EventKind::PduReceived);
        drop(offered);
        wait_for(&mut parent, EventKind::Disconnected);
        until_status(&engine.socket, "quiet", |s| s.connections.len() == 2);
    }
    // Time-outs come when they are due, not at once and not in ten years.
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stranger.read(&mut [0; 8]).unwrap_or(0), 0);
    let took = start.elapsed();
    assert!(took.as_millis() > 4900, "sent away after {took:?}");
    bystanders.check();
    let status = until_status(&engine.socket, "asked for life signs", |s| {
        s.connections.iter().any(|it| it.keepalives_sent > 2)
    });
    let ended = &status.engine.rejected;
    assert!(
        !ended.contains_key("nobody accepted the offer in time"),
        "{ended:?}"
    );
    assert!(engine.is_running());
    std::fs::remove_dir_all(&directory).unwrap();
}
