// Events that real apps log and strict decoders refuse: {name, value, metadata, user}, each name another.
// `user` is for the SDKs that take one an event: undefined means the driver's usual one, null that there is none.

const PLAIN = 250;

const VALUES = {
  absent: undefined,
  null: null,
  empty: '',
  text: 'text',
  unicode: 'ünïcødé 🎉 日本 \u2028\u2029',
  escapes: 'quotes " and \\ and \n and \x00 and \x7f',
  brackets: ']},{[',
  'half a pair': 'half an emoji: \ud83d',
  'swapped pair': '\udc00\ud800 both halves the wrong way round',
  zero: 0,
  'minus zero': -0,
  negative: -1,
  'past 32 bits': 2 ** 31,
  'past 53 bits': 2 ** 53 + 2,
  'past 64 bits': 2 ** 64,
  fraction: 1.5,
  '1e21': 1e21,
  '1e-9': 1e-9,
  'smallest float': 5e-324,
  'largest float': Number.MAX_VALUE,
  NaN: NaN,
  Infinity: Infinity,
  '-Infinity': -Infinity,
  'long text': 'x'.repeat(2_000),
  'long emoji': '🎉'.repeat(1_000),
};

const METADATA = {
  absent: undefined,
  null: null,
  empty: {},
  'odd keys': { 'key with spaces': 'v', '': 'empty key', empty: '', 'half \ud83d': 'half \ude00', '🔑': '🎉' },
  'nested event': { events: '[{"eventName":"nested"}]', user: '{"privateAttributes":{"a":1}}' },
  nested: { deep: { deeper: [1, [2, [3, { events: [] }]]] } },
  numbers: { list: [0, -0, 1e21, 2 ** 64, 0.1], yes: true, no: false, nothing: null, missing: undefined },
  'no numbers': { nan: NaN, infinity: Infinity },
  long: { text: 'y'.repeat(5_000) },
  wide: Object.fromEntries(Array.from({ length: 200 }, (_, n) => [`k${n}`, `v${n}`])),
};

const USERS = {
  none: null,
  'empty id': { userID: '' },
  unicode: { userID: 'user-ünïcødé-🎉' },
  'custom ids': { userID: '7', customIDs: { companyID: 'c-1', '🏢': 'x' } },
  whole: { userID: 'u', email: 'a@example.com', ip: '192.0.2.1', country: 'CH', locale: 'de_CH', appVersion: '1.2.3' },
  custom: { userID: 'u', custom: { plan: 'pro', seats: 7, tags: ['a', 'b'], odd: 'half \ud83d', long: 'z'.repeat(2_000) } },
  private: { userID: 'u', privateAttributes: { payer: 'never-to-be-sent' } },
};

const NAMES = [
  'name with spaces', 'naïve::name', 'a[b]{c}<d>#=;&$%|', 'long '.repeat(20), 'party 🎉', 'new\nline', '"events":[', '\\',
];

export const USER = { userID: 'user-1', email: 'a@example.com', custom: { plan: 'pro' } };

/** Gives a few hundred events, the odd ones first. */
export function oddEvents() {
  const each = (kind, cases, event) => Object.entries(cases).map(([what, one]) => ({ name: `${kind} ${what}`, ...event(one) }));
  return [
    ...each('value', VALUES, (value) => ({ value, metadata: { a: 'b' } })),
    ...each('metadata', METADATA, (metadata) => ({ value: 'v', metadata })),
    ...each('user', USERS, (user) => ({ value: 'v', metadata: null, user })),
    ...NAMES.map((name) => ({ name, value: 'v', metadata: null })),
    ...Array.from({ length: PLAIN }, (_, n) => ({
      name: `plain ${n}`,
      value: n,
      metadata: { n: String(n), page: `/p/${n % 7}` },
    })),
  ];
}
