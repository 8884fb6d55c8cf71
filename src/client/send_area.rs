#![forbid(unsafe_code)]
//! Which pages of the send area are in use.

/// A run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first page.
    pub(super) start: u32,
    /// How many.
    pub(super) pages: u32,
}

/// First-fit over a bitmap: low pages are used again and again, so that few are ever committed.
#[derive(Debug)]
pub(super) struct SendArea {
    /// One bit per page, 1: in use. Bits beyond the last page are 1.
    words: Vec<u64>,
    total: u32,
    free: u32,
    /// No page below this one is free.
    first_free: u32,
}

impl SendArea {
    /// An area of `pages` free pages.
    pub(super) fn new(pages: u32) -> Self {
        let mut words = vec![0; pages.div_ceil(64) as usize];
        if pages % 64 != 0 {
            if let Some(last) = words.last_mut() {
                *last = u64::MAX << (pages % 64);
            }
        }
        Self {
            words,
            total: pages,
            free: pages,
            first_free: 0,
        }
    }

    /// Pages of the whole area.
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// Takes the lowest run of `pages` pages (at least 1).
    pub(super) fn allocate(&mut self, pages: u32) -> Option<Run> {
        let start = self.find(pages)?;
        self.mark(start, pages, true);
        self.free -= pages;
        if start == self.first_free {
            self.first_free = start + pages;
        }
        Some(Run { start, pages })
    }

    /// Whether [`SendArea::allocate`] would succeed.
    pub(super) fn fits(&self, pages: u32) -> bool {
        self.find(pages).is_some()
    }

    /// Gives a run back.
    pub(super) fn release(&mut self, run: Run) {
        self.mark(run.start, run.pages, false);
        self.free += run.pages;
        self.first_free = self.first_free.min(run.start);
    }

    fn find(&self, pages: u32) -> Option<u32> {
        if pages > self.free {
            return None;
        }
        let mut page = self.first_free;
        let mut run = 0;
        while page < self.total {
            let word = self.words[page as usize / 64];
            let bit = page % 64;
            if bit == 0 && word == u64::MAX {
                run = 0;
                page += 64;
                continue;
            }
            if bit == 0 && word == 0 {
                run += 64;
                page += 64;
            } else {
                run = if word & 1 << bit == 0 { run + 1 } else { 0 };
                page += 1;
            }
            if run >= pages {
                return Some(page - run);
            }
        }
        None
    }

    fn mark(&mut self, start: u32, pages: u32, in_use: bool) {
        for page in start..start + pages {
            let bit = 1 << (page % 64);
            let word = &mut self.words[page as usize / 64];
            debug_assert_eq!(*word & bit == 0, in_use);
            *word = if in_use { *word | bit } else { *word & !bit };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_fitting_run_is_taken() {
        let mut area = SendArea::new(100);
        let a = area.allocate(10).unwrap();
        let b = area.allocate(60).unwrap();
        let c = area.allocate(30).unwrap();
        assert_eq!((a.start, b.start, c.start), (0, 10, 70));
        assert!(area.allocate(1).is_none());
        area.release(b);
        assert!(!area.fits(61));
        assert_eq!(area.allocate(60), Some(b));
        area.release(a);
        area.release(c);
        assert!(area.fits(30) && !area.fits(31));
        assert_eq!(
            area.allocate(11),
            Some(Run {
                start: 70,
                pages: 11
            })
        );
        assert_eq!(area.allocate(10), Some(a));
    }

    /// Random use against a plain model.
    #[test]
    fn runs_never_overlap_and_nothing_is_lost() {
        let mut area = SendArea::new(1000);
        let mut model = vec![false; 1000];
        let mut runs: Vec<Run> = Vec::new();
        let mut seed = 1_u32;
        let mut random = |below: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) % below
        };
        for _ in 0..20_000 {
            if random(2) == 0 && !runs.is_empty() {
                let run = runs.swap_remove(random(runs.len() as u32) as usize);
                area.release(run);
                model[run.start as usize..][..run.pages as usize].fill(false);
            } else {
                let pages = 1 + random(200);
                let fits = model
                    .windows(pages as usize)
                    .position(|window| !window.contains(&true));
                let run = area.allocate(pages);
                assert_eq!(run.map(|run| run.start as usize), fits);
                if let Some(run) = run {
                    model[run.start as usize..][..run.pages as usize].fill(true);
                    runs.push(run);
                }
            }
        }
    }
}
