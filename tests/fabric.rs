//! The rules of `smbdirect::fabric`, kept by every fabric: the same tests over software iWARP and
//! over each RDMA device that this machine has.
//!
//! On a machine without one the latter are left to the guests of tests/uml, where `tests/devices.rs`
//! makes them again. `SMBDIRECT_TEST_RDMA=1`, which those set, makes it a failure.

mod common;
mod fabric_set;

use smbdirect::fabric::iwarp::{IwarpConfig, IwarpFabric, SegmentSize};
use smbdirect::fabric::Fabric;
use smbdirect::sys::Registry;

use fabric_set::cases;
use fabric_set::world::World;

fn soft_iwarp(case: fn(&mut World)) {
    case(&mut soft_world("127.0.0.1", &IwarpConfig::default()));
}

fn soft_world(address: &str, config: &IwarpConfig) -> World {
    let make = |registry: Registry| -> Box<dyn Fabric> {
        Box::new(IwarpFabric::new(registry, config.clone()).unwrap())
    };
    World::new(address.parse().unwrap(), make)
}

#[test]
fn iwarp_over_ipv6_with_crc() {
    let mut world = soft_world("::1", &IwarpConfig::default());
    world.mpa.connect_crc = true;
    cases::every_operation(&mut world);
}

/// The passive side asks for the CRC.
#[test]
fn iwarp_of_revision_1() {
    let mut world = soft_world("127.0.0.1", &IwarpConfig::default());
    world.mpa.revision = 1;
    world.mpa.listen_crc = true;
    cases::every_operation(&mut world);
}

#[test]
fn iwarp_in_small_segments() {
    let config = IwarpConfig {
        segment: SegmentSize::Bytes(1442),
        ..IwarpConfig::default()
    };
    for crc in [false, true] {
        let mut world = soft_world("127.0.0.1", &config);
        world.mpa.connect_crc = crc;
        cases::every_operation(&mut world);
    }
}

#[test]
fn iwarp_with_small_socket_buffers() {
    let config = IwarpConfig {
        send_buffer: Some(8 << 10),
        receive_buffer: Some(8 << 10),
        segment: SegmentSize::Bytes(60_000),
        ..IwarpConfig::default()
    };
    cases::every_operation(&mut soft_world("127.0.0.1", &config));
}

#[cfg(feature = "verbs")]
fn verbs(name: &str, case: fn(&mut World)) {
    with_verbs(
        name,
        &smbdirect::fabric::verbs::VerbsConfig::default(),
        case,
    );
}

/// Runs a case over every device.
#[cfg(feature = "verbs")]
fn with_verbs(name: &str, config: &smbdirect::fabric::verbs::VerbsConfig, case: fn(&mut World)) {
    use smbdirect::fabric::verbs::VerbsFabric;
    let _ = env_logger::try_init();
    let devices = fabric_set::devices();
    if devices.is_empty() {
        return common::leave_to_guest(&format!("verbs::{name}"));
    }
    for (device, address) in devices {
        println!("{name} over {device}, {address}");
        let make = |registry: Registry| -> Box<dyn Fabric> {
            Box::new(VerbsFabric::new(registry, config.clone()).unwrap())
        };
        case(&mut World::new(address, make));
    }
}

macro_rules! cases {
    ($($name:ident)*) => {
        mod iwarp {
            $(#[test]
            fn $name() {
                super::soft_iwarp(super::cases::$name);
            })*
        }

        #[cfg(feature = "verbs")]
        mod verbs {
            $(#[test]
            fn $name() {
                super::verbs(stringify!($name), super::cases::$name);
            })*
        }
    };
}

cases! {
    every_operation both_directions_at_once depths_are_agreed_on_and_kept no_reads_without_depth
    rejected nobody_listens posted_sends_leave_before_the_end an_abrupt_end_flushes_in_order
    the_peer_ends the_end_at_the_first_message a_message_before_the_set_up_is_over memory_is_free_after_the_completion memory_taken_back_is_out_of_reach a_token_that_does_not_exist
    a_token_given_back_at_once memory_is_given_back more_than_the_device_holds messages_too_long a_listener_that_closes many_connections
    caller_that_does_not_decide
}

/// A port for one kind of device takes connections on devices of that kind only, by itself and
/// under a wildcard.
#[cfg(feature = "verbs")]
#[test]
fn verbs_ports_are_for_their_devices() {
    let config = smbdirect::fabric::verbs::VerbsConfig::default();
    with_verbs("ports", &config, cases::ports_are_for_their_devices);
}

/// siw sends memory without a copy, and may still do so when the software side has not read yet.
#[cfg(feature = "verbs")]
#[test]
fn verbs_to_software_iwarp() {
    use smbdirect::fabric::verbs::{VerbsConfig, VerbsFabric};
    let devices = fabric_set::devices();
    if devices.is_empty() {
        return common::leave_to_guest("verbs_to_software_iwarp");
    }
    let mut siw = devices.iter().filter(|(name, _)| name.starts_with("siw"));
    let Some(&(_, address)) = siw.next() else {
        return common::skip("verbs_to_software_iwarp", "no siw device");
    };
    let make = |side, registry: Registry| -> Box<dyn Fabric> {
        match side {
            0 => Box::new(VerbsFabric::new(registry, VerbsConfig::default()).unwrap()),
            _ => Box::new(IwarpFabric::new(registry, IwarpConfig::default()).unwrap()),
        }
    };
    cases::memory_is_free_after_the_completion(&mut World::mixed(address, make));
}

/// Without a device a listener waits, and all else says what is missing.
#[cfg(feature = "verbs")]
#[test]
fn verbs_without_a_device() {
    use smbdirect::fabric::verbs::{VerbsConfig, VerbsFabric};
    use smbdirect::fabric::{ListenOptions, ListenerKey};
    if std::fs::read_dir("/sys/class/infiniband").is_ok_and(|mut it| it.next().is_some()) {
        return common::skip("verbs_without_a_device", "there is a device");
    }
    let poller = smbdirect::sys::Poller::new().unwrap();
    let mut fabric = VerbsFabric::new(poller.registry(0), VerbsConfig::default()).unwrap();
    let options = ListenOptions::default();
    let mut listener: Option<ListenerKey> = None;
    for text in ["0.0.0.0:445", "[::]:5445", "192.0.2.1:445"] {
        let address = text.parse().unwrap();
        let (key, taken) = fabric.listen(address, &options).expect(text);
        assert_eq!(taken, address);
        listener = Some(key);
    }
    let address = "192.0.2.1".parse().unwrap();
    for asked in [None, listener] {
        let why = fabric.local_address(asked, address).unwrap_err();
        assert!(why.contains("no RDMA device"), "{why}");
    }
    let mut connect = fabric_set::world::connect_options("192.0.2.1:445".parse().unwrap());
    connect.timeout = std::time::Duration::from_secs(1);
    let now = std::time::Instant::now();
    let error = fabric.connect(now, &connect).unwrap_err().to_string();
    assert!(error.contains("no RDMA devices"), "{error}");
    // It goes on looking.
    assert!(fabric.next_timeout().is_some());
    fabric.handle_timeout(now + std::time::Duration::from_secs(60), &mut Vec::new());
    assert!(fabric.next_timeout().is_some());
}

/// The tightest protection: memory registered for each operation.
#[cfg(feature = "verbs")]
#[test]
fn verbs_registers_each_operation() {
    let config = smbdirect::fabric::verbs::VerbsConfig {
        register_each: true,
        inline: 0,
        ..Default::default()
    };
    with_verbs("register_each", &config, cases::every_operation);
}

/// Queues so short that nearly everything waits.
#[cfg(feature = "verbs")]
#[test]
fn verbs_with_short_queues() {
    let config = smbdirect::fabric::verbs::VerbsConfig {
        send_depth: 16,
        chunk: 64 << 10,
        ..Default::default()
    };
    with_verbs("short queues", &config, cases::both_directions_at_once);
    with_verbs("short queues", &config, cases::every_operation);
}

/// A device that cannot moderate its events is used all the same.
#[cfg(feature = "verbs")]
#[test]
fn verbs_with_moderation() {
    let config = smbdirect::fabric::verbs::VerbsConfig {
        moderation: Some((16, 20)),
        ..Default::default()
    };
    with_verbs("moderation", &config, cases::every_operation);
}

/// Peers that do not hear of the end in time are not told any longer; the others are.
#[cfg(feature = "verbs")]
#[test]
fn verbs_with_one_goodbye() {
    let config = smbdirect::fabric::verbs::VerbsConfig {
        max_goodbyes: 1,
        ..Default::default()
    };
    with_verbs("one goodbye", &config, cases::many_connections);
    with_verbs(
        "one goodbye",
        &config,
        cases::an_abrupt_end_flushes_in_order,
    );
}
