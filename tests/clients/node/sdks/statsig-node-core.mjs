import { Statsig, StatsigUser } from '@statsig/statsig-node-core';
import { USER } from '../odd-events.mjs';

export async function drive({ events, relay, specs }) {
  const client = new Statsig('secret-driver', {
    logEventUrl: `${relay}/log_event`,
    specsUrl: `${specs}/v2/download_config_specs`,
    fallbackToStatsigApi: false,
    eventLoggingMaxQueueSize: 100,
  });
  await client.initialize();
  const usual = new StatsigUser(USER);
  client.checkGate(usual, 'a_gate');
  client.getDynamicConfig(usual, 'a_config');
  client.getLayer(usual, 'a_layer').get('size', 0);
  for (const { name, value, metadata, user } of events) {
    client.logEvent(user ? new StatsigUser(user) : usual, name, value, metadata);
  }
  await client.flushEvents();
  await client.shutdown();
}
