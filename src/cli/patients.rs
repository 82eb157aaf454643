//! Devices and patients for the demo and for `probe`: all of them invented, with vital signs that move as a body's do.
//!
//! Names and numbers say that they are invented, so that a message that strays into a real system is known for what it is.

/// A small generator of numbers that only have to look alive (SplitMix64, Steele, Lea and Flood 2014). Never for keys.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of -1, 0 and 1.
    fn step(&mut self) -> i32 {
        match self.number() % 3 {
            0 => -1,
            1 => 0,
            _ => 1,
        }
    }
}

/// A patient that never was.
#[derive(Clone, Copy, Debug)]
pub struct Patient {
    /// Family name; begins with "Test".
    pub family: &'static str,
    /// Given name.
    pub given: &'static str,
    /// Date of birth, YYYYMMDD.
    pub born: &'static str,
    /// HL7 table 0001.
    pub sex: &'static str,
}

const PATIENTS: [Patient; 8] = [
    Patient { family: "Test-Adler", given: "Alma", born: "19470312", sex: "F" },
    Patient { family: "Test-Birke", given: "Björn", born: "19620825", sex: "M" },
    Patient { family: "Test-Cedro", given: "Carmen", born: "19800101", sex: "F" },
    Patient { family: "Test-Douglas", given: "Denis", born: "19551130", sex: "M" },
    Patient { family: "Test-Érable", given: "Élodie", born: "19911217", sex: "F" },
    Patient { family: "Test-Fichte", given: "Florian", born: "20010606", sex: "M" },
    Patient { family: "Test-Ginkgo", given: "Grete", born: "19380919", sex: "F" },
    Patient { family: "Test-Hêtre", given: "Hugo", born: "19730404", sex: "M" },
];

/// The invented patient in a bed.
pub fn patient(bed: usize) -> Patient {
    // Unwrap safety: there are patients, and the remainder is smaller than their number.
    #[allow(clippy::unwrap_used)]
    *PATIENTS.get(bed % PATIENTS.len()).unwrap()
}

/// Vital signs at a moment, in the units of their names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vitals {
    /// Beats per minute.
    pub heart: i32,
    /// Percent.
    pub oxygen: i32,
    /// Breaths per minute.
    pub breaths: i32,
    /// mmHg.
    pub systolic: i32,
    /// mmHg.
    pub diastolic: i32,
    /// Tenths of a degree Celsius.
    pub temperature_tenths: i32,
}

/// A body whose signs wander within what one sees on a ward.
#[derive(Clone, Debug)]
pub struct Body {
    now: Vitals,
    chance: Chance,
}

impl Body {
    /// A body that begins somewhere of its own.
    pub fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let mut within = |low: i32, width: u64| low + i32::try_from(chance.number() % width).unwrap_or(0);
        let now = Vitals {
            heart: within(62, 40),
            oxygen: within(94, 6),
            breaths: within(12, 8),
            systolic: within(105, 40),
            diastolic: within(62, 22),
            temperature_tenths: within(363, 15),
        };
        Self { now, chance }
    }

    /// The signs a moment later.
    pub fn signs(&mut self) -> Vitals {
        let chance = &mut self.chance;
        let mut walk = |value: &mut i32, low: i32, high: i32| *value = (*value + chance.step()).clamp(low, high);
        walk(&mut self.now.heart, 48, 132);
        walk(&mut self.now.oxygen, 88, 100);
        walk(&mut self.now.breaths, 8, 28);
        walk(&mut self.now.systolic, 98, 175);
        walk(&mut self.now.diastolic, 50, 88);
        walk(&mut self.now.temperature_tenths, 358, 392);
        self.now
    }
}

impl Vitals {
    /// Mean arterial pressure: a third of the pulse pressure above the diastolic one.
    pub fn mean_pressure(&self) -> i32 {
        self.diastolic + (self.systolic - self.diastolic) / 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vital_signs_stay_those_of_the_living() {
        for seed in 0..8 {
            let mut body = Body::new(seed);
            for _ in 0..10_000 {
                let now = body.signs();
                assert!((48..=132).contains(&now.heart) && (88..=100).contains(&now.oxygen));
                assert!(now.diastolic < now.mean_pressure() && now.mean_pressure() < now.systolic, "{now:?}");
            }
        }
    }

    #[test]
    fn every_patient_is_known_for_an_invented_one() {
        assert!((0..20).map(patient).all(|patient| patient.family.starts_with("Test-")));
    }
}
