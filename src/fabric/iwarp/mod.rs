#![forbid(unsafe_code)]
//! Software iWARP: MPA, DDP and RDMAP in user space over TCP.
