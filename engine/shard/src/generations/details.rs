//! How likely tokens were, until their readers were told. It is of the moment: not in the log, and not for those who come
//! later.

use std::collections::VecDeque;

use thalweg_protocol::generation::TokenDetail;
use thalweg_protocol::limits::TOKEN_DETAILS_KEPT;

/// Details of one generation's tokens, by rising index. At most [`TOKEN_DETAILS_KEPT`]; the oldest go first.
#[derive(Debug, Default)]
pub(super) struct Details {
    kept: VecDeque<TokenDetail>,
}

impl Details {
    /// Takes the detail of the next token.
    pub(super) fn push(&mut self, detail: TokenDetail) {
        if self.kept.len() == TOKEN_DETAILS_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(detail);
    }

    /// What there is of the tokens `from..to`.
    pub(super) fn between(&self, from: u32, to: u32) -> Vec<TokenDetail> {
        let at = |index: u32| self.kept.partition_point(|detail| detail.index < index);
        self.kept.range(at(from)..at(to)).cloned().collect()
    }

    /// Nobody needs those of the tokens before `index` any more.
    pub(super) fn forget(&mut self, index: u32) {
        while self.kept.front().is_some_and(|detail| detail.index < index) {
            self.kept.pop_front();
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_until_they_are_forgotten() {
        let most = TOKEN_DETAILS_KEPT as u32;
        let mut details = Details::default();
        let detail = |index| TokenDetail { index, id: 1, text: "a".into(), logprob: -1.0, top: Vec::new() };
        // Every third token has none.
        (0..2 * most).filter(|index| index % 3 != 0).for_each(|index| details.push(detail(index)));
        let indices = |details: &Details, from, to| -> Vec<u32> {
            details.between(from, to).iter().map(|detail| detail.index).collect()
        };
        assert_eq!(indices(&details, 0, 3), [0_u32; 0], "the oldest went");
        assert_eq!(indices(&details, 2 * most - 4, 2 * most), [2 * most - 4, 2 * most - 3, 2 * most - 1]);
        details.forget(2 * most - 3);
        assert_eq!(indices(&details, 0, 2 * most), [2 * most - 3, 2 * most - 1]);
        assert!(!details.is_empty());
        details.forget(u32::MAX);
        assert!(details.is_empty());
    }
}
