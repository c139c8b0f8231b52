import sdk from 'statsig-js';
import { BOOTSTRAP } from '../bootstrap.mjs';
import { USER } from '../odd-events.mjs';

const Statsig = sdk.default;

export async function drive({ events, relay, specs }) {
  await Statsig.initialize('client-driver', USER, {
    eventLoggingApi: relay,
    api: `${specs}/v1`,
    initializeValues: BOOTSTRAP,
    ignoreWindowUndefined: true,
    disableErrorLogging: true,
    loggingBufferMaxSize: 100,
  });
  Statsig.checkGate('a_gate');
  Statsig.getConfig('a_config');
  Statsig.getLayer('a_layer').get('size', 0);
  for (const { name, value, metadata } of events) Statsig.logEvent(name, value, metadata);
  Statsig.flushEvents();
  Statsig.shutdown();
}
