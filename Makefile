# Verbs for people and for CI; `make help` lists them. The work is done by cargo and scripts/.

CARGO      ?= cargo
# More for the builds of `make build` and `make install`, for instance --locked --offline.
CARGO_FLAGS ?=
PREFIX     ?= /usr/local
BINDIR     ?= $(PREFIX)/bin
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
SYSCONFDIR ?= $(if $(filter /usr,$(PREFIX)),/etc,$(PREFIX)/etc)
# Where units go; empty: none is installed.
UNITDIR    ?= $(PREFIX)/lib/systemd/system
DESTDIR    ?=
INSTALL    ?= install

# The number of the C ABI (the SONAME's, see build.rs) goes first in the library's file name, then
# the crate's minor version and patch level.
ABI        := 1
VERSION    := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
LIBFILE    := libsmbdirect.so.$(ABI).$(shell echo $(VERSION) | cut -d. -f2-)
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
RELEASE    := $(TARGET_DIR)/release
LIBRARY    := $(RELEASE)/libsmbdirect.so

FUZZ_SECONDS ?= 600

.PHONY: help build run test test-devices torture torment lint fuzz loom miri bench bench-load \
    bench-smb bench-uml bench-verbs header install uninstall clean

help:
	@echo 'make run      show it: patched smbd, engine, proxy, smbclient, one file over SMB Direct'
	@echo 'make test     build and run every test; the last line tells passed, failed, skipped'
	@echo 'make test-devices  all tests that can run over RDMA devices, over rxe and siw in guests (root,'
	@echo '              about 20 minutes; make test has a selection)'
	@echo 'make torture  all smb2 tests of smbtorture, over SMB Direct and TCP (half an hour)'
	@echo 'make torment  signals at random moments to client, smbd and engine, ROUNDS=200 (3 minutes)'
	@echo 'make fuzz     all fuzzers, FUZZ_SECONDS (600) each; needs nightly Rust and cargo-fuzz'
	@echo 'make loom     model checking of the rings (part of make test)'
	@echo 'make miri     undefined behaviour in wire, proto, ring and mem; needs nightly Rust and miri'
	@echo 'make lint     rustfmt and clippy, warnings denied'
	@echo 'make bench    software iWARP and the engine against plain TCP, as ratios'
	@echo 'make bench-smb  signing and encryption of data by RDMA, by TCP and in PDUs, on smbd'
	@echo 'make bench-load  1,000 connections with mixed traffic, compared; SECONDS=600 CONNECTIONS=1000'
	@echo 'make bench-uml  Linux kernel client on smbd, SMB Direct against TCP (root, 3 minutes)'
	@echo 'make bench-verbs  verbs over rxe and siw, software iWARP and TCP, in one guest (root, 8 minutes)'
	@echo 'make header   generate include/smbdirect.h again'
	@echo 'make install  library, header, pkg-config file, program, systemd unit (PREFIX=, LIBDIR=,'
	@echo '              SYSCONFDIR=, UNITDIR=, DESTDIR=, CARGO_FLAGS=)'
	@echo 'make clean    remove what was built'

build:
	$(CARGO) build --release $(CARGO_FLAGS)

run:
	@scripts/run-demo.sh

test:
	@scripts/test.sh

test-devices:
	SMBDIRECT_TEST_DEVICES=all $(CARGO) test --test devices -- --nocapture --test-threads=1

torture:
	SMBDIRECT_TORTURE=all $(CARGO) test --test samba_torture -- --nocapture

torment:
	SMBDIRECT_TORMENT_ROUNDS=$(or $(ROUNDS),200) $(CARGO) test --test torment -- --nocapture

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

fuzz:
	@scripts/fuzz.sh $(FUZZ_SECONDS)

loom:
	$(CARGO) test --manifest-path loom/Cargo.toml --target-dir $(TARGET_DIR)/loom

# What needs no system calls that Miri lacks, and no minutes under it.
MIRI_TESTS := wire:: mem::region ring::entry ring::tests::two_threads router::tests::negotiate \
    router::tests::session_setup router::tests::stranger proto::credits proto::spare proto::params \
    proto::tests::captures proto::tests::cases::case_0 proto::tests::cases::case_1 \
    fabric::iwarp::ddp fabric::iwarp::terminate ipc::tests::a_page --skip every_byte \
    --skip many_dialects

miri:
	MIRIFLAGS=-Zmiri-disable-isolation $(CARGO) +nightly miri test --lib --no-default-features \
	    --target-dir $(TARGET_DIR)/miri -- $(MIRI_TESTS)

bench: build
	$(RELEASE)/smbdirect bench $(BENCH_OPTIONS)

# The share is in memory.
bench-smb:
	TMPDIR=/dev/shm $(CARGO) test --release --test smb_bench -- --nocapture

bench-load: build
	$(RELEASE)/smbdirect bench --load --seconds $(or $(SECONDS),600) \
	    --connections $(or $(CONNECTIONS),1000) $(BENCH_OPTIONS)

bench-uml:
	@scripts/deps.sh fio=fio strace=strace
	$(CARGO) test --release --test uml_bench -- --nocapture

bench-verbs:
	@scripts/deps.sh fio=fio strace=strace mount.cifs=cifs-utils rdma=iproute2 pgrep=procps \
	    /usr/include/rdma/rdma_cma.h=librdmacm-dev /etc/libibverbs.d/rxe.driver=ibverbs-providers
	$(CARGO) test --release --test verbs_bench -- --nocapture

header:
	SMBDIRECT_UPDATE_HEADER=1 $(CARGO) test --test header
	scripts/samba-sync.py

install: build
	$(INSTALL) -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(INCLUDEDIR)'
	$(INSTALL) -m 755 $(RELEASE)/smbdirect '$(DESTDIR)$(BINDIR)/smbdirect'
	$(INSTALL) -m 755 $(LIBRARY) '$(DESTDIR)$(LIBDIR)/$(LIBFILE)'
	ln -sf $(LIBFILE) '$(DESTDIR)$(LIBDIR)/libsmbdirect.so.$(ABI)'
	ln -sf libsmbdirect.so.$(ABI) '$(DESTDIR)$(LIBDIR)/libsmbdirect.so'
	$(INSTALL) -m 644 include/smbdirect.h '$(DESTDIR)$(INCLUDEDIR)/smbdirect.h'
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' \
	    -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' -e 's|@VERSION@|$(VERSION)|' smbdirect.pc.in \
	    > '$(DESTDIR)$(LIBDIR)/pkgconfig/smbdirect.pc'
ifneq ($(UNITDIR),)
	$(INSTALL) -d '$(DESTDIR)$(UNITDIR)'
	sed -e 's|@BINDIR@|$(BINDIR)|' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|' \
	    systemd/smbdirect.service.in > '$(DESTDIR)$(UNITDIR)/smbdirect.service'
endif

uninstall:
	rm -f '$(DESTDIR)$(BINDIR)/smbdirect' '$(DESTDIR)$(LIBDIR)/$(LIBFILE)' \
	    '$(DESTDIR)$(LIBDIR)/libsmbdirect.so.$(ABI)' '$(DESTDIR)$(LIBDIR)/libsmbdirect.so' \
	    '$(DESTDIR)$(INCLUDEDIR)/smbdirect.h' '$(DESTDIR)$(LIBDIR)/pkgconfig/smbdirect.pc' \
	    $(if $(UNITDIR),'$(DESTDIR)$(UNITDIR)/smbdirect.service')

clean:
	$(CARGO) clean
