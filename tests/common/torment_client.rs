//! A client that writes and reads without end and tells each step, as a process to be tormented.
//!
//! Each block of its file has a generation; a write makes the next one. No block has two requests in
//! flight, and a new file is begun after each loss of the connection, so that of a block only two
//! contents are possible: the last that was acknowledged, and the one that was asked for after it.
//!
//! Needs `common/samba.rs` and `common/smb.rs` as `crate::samba` and `crate::smb`.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use smbdirect::mem::MemSlice;
use smbdirect::smb::{
    channel, Command, Connection, Dialect, FileId, Memory, MessageId, OpenMode, Profile,
    ReadRequest, Request, Signing, SmbError, WriteRequest,
};

use crate::smb::{credentials, direct_to, noise, options, SOURCE, TARGET};

/// Has the orders of a client process.
pub(crate) const ORDERS: &str = "SMBDIRECT_TORMENT_CLIENT";
/// Begins each line that a client tells; the test harness writes to the same pipe.
pub(crate) const MARK: &str = "@ ";

pub(crate) const BLOCK: usize = 64 << 10;
pub(crate) const BLOCKS: usize = 32;
const PAGE: usize = 4096;
const WINDOW: usize = 4;

/// What a client is to do.
#[derive(Debug, Clone)]
pub(crate) struct Orders {
    /// Its files are `NAME-0`, `NAME-1` and so on.
    pub(crate) name: String,
    pub(crate) seed: u64,
    /// `tcp`, or the name of a profile of SMB Direct.
    pub(crate) transport: String,
    pub(crate) address: SocketAddr,
    /// Connects again after a loss, and looks whether all that was acknowledged is there. It takes
    /// its time between two requests.
    pub(crate) persists: bool,
}

impl Orders {
    pub(crate) fn to_text(&self) -> String {
        let Self {
            name,
            seed,
            transport,
            address,
            persists,
        } = self;
        format!("{name} {seed} {transport} {address} {persists}")
    }

    fn parse(text: &str) -> Self {
        let fields: Vec<_> = text.split(' ').collect();
        let [name, seed, transport, address, persists] = fields[..] else {
            panic!("orders: {text}");
        };
        Self {
            name: name.into(),
            seed: seed.parse().unwrap(),
            transport: transport.into(),
            address: address.parse().unwrap(),
            persists: persists.parse().unwrap(),
        }
    }
}

/// Generations of a block; 0 is none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Block {
    pub(crate) submitted: u32,
    pub(crate) acknowledged: u32,
}

/// What a file may contain.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    seed: u64,
    pub(crate) blocks: [Block; BLOCKS],
}

impl Model {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            blocks: [Block::default(); BLOCKS],
        }
    }

    fn content(&self, block: usize, generation: u32) -> Vec<u8> {
        if generation == 0 {
            return vec![0; BLOCK];
        }
        let place = (block as u64) << 32 | u64::from(generation);
        noise(BLOCK, self.seed ^ place.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    /// Each page is what was acknowledged, or what was asked for afterwards: a process that dies
    /// within a write has written a part of it.
    pub(crate) fn check(&self, index: usize, bytes: &[u8]) -> Result<(), String> {
        let block = self.blocks[index];
        let mut bytes = bytes.to_vec();
        // A file ends behind its last write.
        bytes.resize(BLOCK, 0);
        let acknowledged = self.content(index, block.acknowledged);
        let asked_for = self.content(index, block.submitted);
        let wrong = (0..BLOCK).step_by(PAGE).find(|&at| {
            let page = at..at + PAGE;
            bytes[page.clone()] != acknowledged[page.clone()]
                && bytes[page.clone()] != asked_for[page]
        });
        match wrong {
            None => Ok(()),
            Some(at) => Err(format!("block {index}, {block:?}: wrong at byte {at}")),
        }
    }

    pub(crate) fn check_file(&self, bytes: &[u8]) -> Result<(), String> {
        (0..BLOCKS).try_for_each(|index| {
            let from = (index * BLOCK).min(bytes.len());
            let to = (from + BLOCK).min(bytes.len());
            self.check(index, &bytes[from..to])
        })
    }
}

/// xorshift64.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Small seeds begin alike.
        for _ in 0..8 {
            dice.next();
        }
        dice
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}

fn say(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{line}").unwrap();
    out.flush().unwrap();
}

/// Takes a byte-range lock that nobody else may have.
pub(crate) fn lock(it: &mut Connection, tree: u32, file: FileId) -> Result<(), SmbError> {
    let mut body = Vec::new();
    body.extend([48, 0, 1, 0, 0, 0, 0, 0]);
    body.extend(file.persistent.to_le_bytes());
    body.extend(file.volatile.to_le_bytes());
    body.extend((1u64 << 40).to_le_bytes());
    body.extend(1u64.to_le_bytes());
    // EXCLUSIVE_LOCK, FAIL_IMMEDIATELY: `[MS-SMB2] 2.2.26.1`.
    body.extend(0x12u32.to_le_bytes());
    body.extend([0; 4]);
    it.call(Request::new(Command::Lock, &body)?.in_tree(tree))
        .map(drop)
}

/// The client's process. It ends in good order with its standard input.
pub(crate) fn run(orders: &str) {
    let orders = Orders::parse(orders);
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        seen.store(true, Ordering::Relaxed);
    });
    let mut client = Client {
        dice: Dice::new(orders.seed),
        model: Model::new(orders.seed),
        old: Vec::new(),
        epoch: 0,
        orders,
        stop,
    };
    loop {
        match client.serve() {
            Ok(()) => return say(format_args!("done")),
            Err(error) => {
                say(format_args!("lost {error}"));
                if !client.orders.persists || client.stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
        client.next_epoch();
    }
}

struct Client {
    orders: Orders,
    stop: Arc<AtomicBool>,
    dice: Dice,
    epoch: u32,
    model: Model,
    /// Files whose connection was lost, to be looked at.
    old: Vec<(String, Model)>,
}

/// A request in flight.
enum Job {
    Write(usize, u32),
    Read(usize),
}

struct Slot {
    /// Source and target of RDMA; none: TCP.
    memory: Option<(Memory, Memory)>,
    job: Option<(MessageId, Job)>,
}

impl Client {
    fn file_name(&self) -> String {
        format!("{}-{}", self.orders.name, self.epoch)
    }

    fn next_epoch(&mut self) {
        self.epoch += 1;
        let next = Model::new(self.orders.seed.wrapping_add(self.epoch.into()));
        let lost = std::mem::replace(&mut self.model, next);
        let name = format!("{}-{}", self.orders.name, self.epoch - 1);
        self.old.push((name, lost));
    }

    fn connect(&self) -> Result<Connection, SmbError> {
        let options = options(Dialect::Smb311, Signing::IfRequired);
        let address = self.orders.address;
        let profile = match &self.orders.transport[..] {
            "tcp" => return Connection::tcp(address, &options),
            "linux" => Profile::linux(),
            "windows" => Profile::windows(),
            _ => Profile::small(),
        };
        direct_to(address, &profile, &options)
    }

    fn set_up(&self) -> Result<(Connection, u32), SmbError> {
        say(format_args!("phase start"));
        let mut it = self.connect()?;
        let port = it.direct_mut().ok().and_then(|direct| {
            let (endpoint, id) = direct.endpoint();
            endpoint.addresses(id).map(|(local, _)| local.port())
        });
        say(format_args!("phase connected {}", port.unwrap_or(0)));
        it.set_up_session(&credentials())?;
        say(format_args!("phase session"));
        let tree = it.tree_connect(r"\\127.0.0.1\share")?;
        Ok((it, tree))
    }

    /// Works until standard input ends, or until the connection does.
    fn serve(&mut self) -> Result<(), SmbError> {
        let (mut it, tree) = loop {
            match self.set_up() {
                Ok(done) => break done,
                // Whoever is to answer is not there yet.
                Err(_) if self.orders.persists && !self.stop.load(Ordering::Relaxed) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(error),
            }
        };
        while let Some((name, model)) = self.old.last() {
            look_at(&mut it, tree, name, model)?;
            say(format_args!("verified {name}"));
            self.old.pop();
        }
        let file = it.open(tree, &self.file_name(), OpenMode::ReadWrite)?.id;
        lock(&mut it, tree, file)?;
        say(format_args!("phase open"));
        let mut slots = Vec::new();
        for _ in 0..WINDOW {
            let memory = match it.direct_mut() {
                Err(_) => None,
                Ok(direct) => {
                    let source = direct.register(&Memory::allocate(BLOCK)?, SOURCE)?;
                    Some((source, direct.register(&Memory::allocate(BLOCK)?, TARGET)?))
                }
            };
            slots.push(Slot { memory, job: None });
        }
        loop {
            let stops = self.stop.load(Ordering::Relaxed);
            for index in 0..WINDOW {
                if slots[index].job.is_none() && !stops {
                    let busy = busy_blocks(&slots);
                    slots[index].job = self.submit(&mut it, tree, file, &slots[index], &busy)?;
                }
            }
            if slots.iter().all(|slot| slot.job.is_none()) {
                it.close(tree, file)?;
                it.tree_disconnect(tree)?;
                return it.logoff();
            }
            let (id, response) = it.wait_any()?;
            let slot = slots.iter_mut();
            let slot = slot
                .into_iter()
                .find(|slot| matches!(slot.job, Some((job, _)) if job == id))
                .expect("one of ours");
            let response = response.success()?;
            match slot.job.take() {
                Some((_, Job::Write(block, generation))) => {
                    assert_eq!(response.written()? as usize, BLOCK);
                    self.model.blocks[block].acknowledged = generation;
                    say(format_args!("acknowledged {block} {generation}"));
                }
                Some((_, Job::Read(block))) => {
                    let checked = match &slot.memory {
                        Some((_, target)) => self.model.check(block, &target.memory().to_vec()),
                        None => self.model.check(block, response.read_result()?.data),
                    };
                    checked.unwrap_or_else(|error| panic!("{}: {error}", self.file_name()));
                    say(format_args!("read {block}"));
                }
                None => unreachable!("it was found by its job"),
            }
            if self.orders.persists {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    fn submit(
        &mut self,
        it: &mut Connection,
        tree: u32,
        file: FileId,
        slot: &Slot,
        busy: &[usize],
    ) -> Result<Option<(MessageId, Job)>, SmbError> {
        let block = self.dice.below(BLOCKS as u64) as usize;
        if busy.contains(&block) {
            return Ok(None);
        }
        let (offset, length) = ((block * BLOCK) as u64, BLOCK as u32);
        let state = self.model.blocks[block];
        let (request, job) = if state.acknowledged > 0 && self.dice.below(3) == 0 {
            let request = match &slot.memory {
                Some((_, target)) => {
                    target.memory().write(0, &[0xa5; BLOCK]).unwrap();
                    let named = target.descriptors();
                    ReadRequest::rdma(file, offset, length, channel::RDMA_V1, named)
                }
                None => ReadRequest::inline(file, offset, length),
            };
            (request.to_request(tree)?, Job::Read(block))
        } else {
            let generation = state.submitted + 1;
            let bytes = self.model.content(block, generation);
            self.model.blocks[block].submitted = generation;
            say(format_args!("submitted {block} {generation}"));
            let request = match &slot.memory {
                Some((source, _)) => {
                    let memory: &MemSlice = source.memory();
                    memory.write(0, &bytes).unwrap();
                    let named = source.descriptors();
                    WriteRequest::rdma(file, offset, length, channel::RDMA_V1, named)
                }
                None => WriteRequest::inline(file, offset, Arc::new(bytes)),
            };
            (request.to_request(tree)?, Job::Write(block, generation))
        };
        Ok(Some((it.submit(request)?, job)))
    }
}

fn busy_blocks(slots: &[Slot]) -> Vec<usize> {
    let jobs = slots.iter().filter_map(|slot| slot.job.as_ref());
    jobs.map(|(_, job)| match job {
        Job::Write(block, _) | Job::Read(block) => *block,
    })
    .collect()
}

/// Compares a file of an earlier connection with what may be in it.
fn look_at(it: &mut Connection, tree: u32, name: &str, model: &Model) -> Result<(), SmbError> {
    // The file may not have been opened when the connection was lost.
    let file = it.open(tree, name, OpenMode::ReadWrite)?;
    let mut bytes = Vec::new();
    while bytes.len() < file.size as usize {
        let length = (file.size as usize - bytes.len()).min(BLOCK) as u32;
        bytes.extend(it.read(tree, file.id, bytes.len() as u64, length)?);
    }
    model
        .check_file(&bytes)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    it.close(tree, file.id)
}
