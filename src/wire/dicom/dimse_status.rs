//! What an answer's status says (PS3.7 annex C, PS3.4 annexes B.2.3 and J): its class and its words.

use std::fmt;

/// The status of a response, (0000,0900).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

/// What follows from a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatusClass {
    /// Done.
    Success,
    /// Done, with a remark: the peer has taken responsibility.
    Warning,
    /// More responses follow; no answer to a storage request.
    Pending,
    /// Cancelled; no answer to a storage request.
    Cancel,
    /// The peer has no room or can't now (A7xx, 0213): a later try may succeed.
    OutOfResources,
    /// The peer does not want this message.
    Failure,
}

impl Status {
    /// Done.
    pub const SUCCESS: Self = Self(0x0000);
    /// Coercion of data elements.
    pub const COERCED: Self = Self(0xb000);
    /// Elements discarded.
    pub const ELEMENTS_DISCARDED: Self = Self(0xb006);
    /// The data set does not match the SOP class, and is stored.
    pub const CLASS_MISMATCH_STORED: Self = Self(0xb007);
    /// Processing failure.
    pub const PROCESSING_FAILURE: Self = Self(0x0110);
    /// The instance is there already.
    pub const DUPLICATE_INSTANCE: Self = Self(0x0111);
    /// There is no such instance.
    pub const NO_SUCH_INSTANCE: Self = Self(0x0112);
    /// There is no such event type.
    pub const NO_SUCH_EVENT: Self = Self(0x0113);
    /// An argument is not valid.
    pub const INVALID_ARGUMENT: Self = Self(0x0115);
    /// The instance UID is not valid.
    pub const INVALID_INSTANCE: Self = Self(0x0117);
    /// The SOP class is not supported.
    pub const CLASS_NOT_SUPPORTED: Self = Self(0x0122);
    /// There is no such action.
    pub const NO_SUCH_ACTION: Self = Self(0x0123);
    /// Refused by policy.
    pub const NOT_AUTHORISED: Self = Self(0x0124);
    /// This message id is in use.
    pub const DUPLICATE_INVOCATION: Self = Self(0x0210);
    /// There is no such operation here.
    pub const UNRECOGNISED_OPERATION: Self = Self(0x0211);
    /// A parameter that can't be there.
    pub const MISTYPED_ARGUMENT: Self = Self(0x0212);
    /// Resource limitation.
    pub const RESOURCE_LIMITATION: Self = Self(0x0213);
    /// Out of resources: no room.
    pub const OUT_OF_RESOURCES: Self = Self(0xa700);
    /// The data set does not match the SOP class.
    pub const CLASS_MISMATCH: Self = Self(0xa900);
    /// Cannot understand.
    pub const CANNOT_UNDERSTAND: Self = Self(0xc000);

    /// What follows from it.
    pub fn class(self) -> StatusClass {
        match self.0 {
            0x0000 => StatusClass::Success,
            // 0001 and the two attribute remarks are warnings by PS3.7 annex C.
            0x0001 | 0x0107 | 0x0116 | 0xb000..=0xbfff => StatusClass::Warning,
            0xff00 | 0xff01 => StatusClass::Pending,
            0xfe00 => StatusClass::Cancel,
            0xa700..=0xa7ff | 0x0213 => StatusClass::OutOfResources,
            _ => StatusClass::Failure,
        }
    }

    /// Success or a warning: the peer has taken responsibility.
    pub fn is_receipt(self) -> bool {
        matches!(self.class(), StatusClass::Success | StatusClass::Warning)
    }

    /// What it says, in the standard's words.
    pub fn words(self) -> &'static str {
        match self.0 {
            0x0000 => "success",
            0x0001 => "warning: requested optional attributes are not supported",
            0x0105 => "no such attribute",
            0x0106 => "invalid attribute value",
            0x0107 => "warning: attribute list error",
            0x0110 => "processing failure",
            0x0111 => "duplicate SOP instance",
            0x0112 => "no such SOP instance",
            0x0113 => "no such event type",
            0x0114 => "no such argument",
            0x0115 => "invalid argument value",
            0x0116 => "warning: attribute value out of range",
            0x0117 => "invalid SOP instance",
            0x0118 => "no such SOP class",
            0x0119 => "class and instance conflict",
            0x0120 => "missing attribute",
            0x0121 => "missing attribute value",
            0x0122 => "SOP class not supported",
            0x0123 => "no such action type",
            0x0124 => "not authorised",
            0x0131 => "duplicate transaction UID",
            0x0210 => "duplicate invocation",
            0x0211 => "unrecognised operation",
            0x0212 => "mistyped argument",
            0x0213 => "resource limitation",
            0xa700..=0xa7ff => "out of resources",
            0xa900..=0xa9ff => "the data set does not match the SOP class",
            0xb000 => "warning: data elements were coerced",
            0xb006 => "warning: elements were discarded",
            0xb007 => "warning: the data set does not match the SOP class",
            0xb001..=0xbfff => "warning",
            0xc000..=0xcfff => "cannot understand",
            0xfe00 => "cancelled",
            0xff00 | 0xff01 => "pending",
            _ => "a status that the standard does not know",
        }
    }
}

/// Number and words: `A700 (out of resources)`.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X} ({})", self.0, self.words())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_of_a_store_has_its_class() {
        let classes = [
            (0x0000, StatusClass::Success),
            (0xb000, StatusClass::Warning),
            (0xb006, StatusClass::Warning),
            (0xb007, StatusClass::Warning),
            (0xb123, StatusClass::Warning),
            (0xa700, StatusClass::OutOfResources),
            (0xa7ff, StatusClass::OutOfResources),
            (0x0213, StatusClass::OutOfResources),
            (0xa801, StatusClass::Failure),
            (0xa900, StatusClass::Failure),
            (0xc123, StatusClass::Failure),
            (0x0110, StatusClass::Failure),
            (0x0122, StatusClass::Failure),
            (0xfe00, StatusClass::Cancel),
            (0xff00, StatusClass::Pending),
            (0x4711, StatusClass::Failure),
        ];
        for (code, class) in classes {
            assert_eq!(Status(code).class(), class, "{code:04X}");
            assert_eq!(Status(code).is_receipt(), matches!(class, StatusClass::Success | StatusClass::Warning));
        }
    }

    #[test]
    fn a_status_says_its_number_and_its_words() {
        assert_eq!(Status::OUT_OF_RESOURCES.to_string(), "A700 (out of resources)");
        assert_eq!(Status(0x0122).to_string(), "0122 (SOP class not supported)");
        assert_eq!(format!("{:?}", Status(0xb007)), "B007");
    }
}
