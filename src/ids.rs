//! The integer newtypes that cross room walls.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        #[repr(transparent)]
        pub struct $name(pub $int);

        impl $name {
            /// The id as an index.
            #[inline]
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// An entry of the model's vocabulary.
    TokenId(u32)
);
id!(
    /// An item type, by its place in the layout's type order.
    TypeId(u16)
);
id!(
    /// The place of an item among its type's items, sorted by SID, then popularity (highest first), then id.
    Rank(u32)
);
id!(
    /// The place of a distinct SID among its type's sorted distinct SIDs.
    SidIndex(u32)
);
id!(
    /// A block of the paged key/value cache.
    BlockId(u32)
);
id!(
    /// A search that lives on the device between the steps of a SID.
    SearchId(u32)
);
id!(
    /// A sequence known to the scheduler.
    SequenceId(u64)
);
