// An app's page: logs the odd events with the SDK that /sdk.js brought, flushes most of them, and logs the last as it is
// left, so that the SDK's unload beacon has to carry them. ?sdk=… names the SDK, ?relay=… the relay's port, and with
// ?stranger the page, whose origin is not allowed, tries a request that browsers send without asking.

import { BOOTSTRAP } from '/bootstrap.mjs';
import { oddEvents, USER } from '/odd-events.mjs';

const LAST_WORDS = 20;

function startClient(relay, specs, { StatsigClient, ...captures }, options = {}) {
  const client = new StatsigClient('client-driver', USER, {
    networkConfig: { api: specs, logEventUrl: `${relay}/rgstr`, sdkExceptionUrl: `${specs}/sdk_exception` },
    ...options,
  });
  captures.runStatsigAutoCapture?.(client);
  captures.runStatsigSessionReplay?.(client);
  client.dataAdapter.setData(JSON.stringify(BOOTSTRAP));
  client.initializeSync({ disableBackgroundCacheRefresh: true });
  client.getLayer('a_layer').get('size');
  return {
    checkGate: (name) => client.checkGate(name),
    log: (...event) => client.logEvent(...event),
    flush: () => client.flush(),
    leavesAt: captures.runStatsigAutoCapture ? 'beforeunload' : 'pagehide', // it has sent the rest by then
  };
}

async function startLegacyClient(relay, specs, statsig) {
  await statsig.initialize('client-driver', USER, {
    eventLoggingApi: relay,
    eventLoggingApiForRetries: relay,
    api: specs,
    initializeValues: BOOTSTRAP,
    loggingBufferMaxSize: 90, // of which the last words find more than 20 free
    disableErrorLogging: true,
    disableNetworkKeepalive: true, // so that it sends a beacon, as it does in browsers without keepalive
  });
  statsig.getLayer('a_layer').get('size', 0);
  return {
    checkGate: (name) => statsig.checkGate(name),
    log: (...event) => statsig.logEvent(...event),
    flush: () => statsig.flushEvents?.(), // one of the two has none
    leavesAt: 'beforeunload',
  };
}

const START = {
  'js-client': (relay, specs) => startClient(relay, specs, { StatsigClient: Statsig.StatsigClient }),
  'js-client-gzip': (relay, specs) =>
    startClient(relay, specs, { StatsigClient: Statsig.StatsigClient }, { logEventCompressionMode: 'f' }),
  'js-client-captures': (relay, specs) => startClient(relay, specs, Statsig),
  'statsig-js': (relay, specs) => startLegacyClient(relay, specs, statsig),
  'statsig-js-lite': (relay, specs) => startLegacyClient(relay, specs, statsig),
};

const report = (what) => fetch('/report', { method: 'POST', body: JSON.stringify(what) });

async function intrude(relay) {
  const forged = JSON.stringify({ events: [{ eventName: 'forged' }] });
  await fetch(`${relay}/log_event?k=client-driver`, { method: 'POST', mode: 'no-cors', body: forged });
}

async function run() {
  const query = new URLSearchParams(location.search);
  const relay = `http://127.0.0.1:${query.get('relay')}/v1`;
  const client = await START[query.get('sdk')](relay, `${location.origin}/v1`);
  const events = oddEvents();
  const log = ({ name, value, metadata }) => client.log(name, value, metadata);
  globalThis.lastWords = (moment) => moment === client.leavesAt && events.slice(-LAST_WORDS).forEach(log);
  if (query.has('stranger')) {
    await intrude(relay);
  } else {
    client.checkGate('a_gate');
    events.slice(0, -LAST_WORDS).forEach(log);
    await client.flush();
  }
  await report(events.map((event) => event.name));
  location.href = '/left';
}

run().catch((error) => report({ error: `${error}\n${error.stack}` }));
