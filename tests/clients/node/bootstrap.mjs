// What a client SDK is told at its start in place of a call to Statsig: one gate, one config and one layer.

import { USER } from './odd-events.mjs';

const config = (name, value) => ({
  name, value, rule_id: 'rule', group: 'group', secondary_exposures: [], is_device_based: false, explicit_parameters: [],
});

export const BOOTSTRAP = {
  has_updates: true,
  time: 1_700_000_000_000,
  user: USER,
  hash_used: 'none',
  feature_gates: {
    a_gate: {
      name: 'a_gate', value: true, rule_id: 'rule',
      secondary_exposures: [{ gate: 'holdout', gateValue: 'false', ruleID: '🎉' }],
    },
  },
  dynamic_configs: { a_config: config('a_config', { colour: 'red' }) },
  layer_configs: { a_layer: config('a_layer', { size: 3 }) },
  sdkParams: {},
};
