import { StatsigClient } from '@statsig/js-client';
import { BOOTSTRAP } from '../bootstrap.mjs';
import { USER } from '../odd-events.mjs';

export async function drive({ events, relay, specs }, options = {}) {
  const client = new StatsigClient('client-driver', USER, {
    loggingEnabled: 'always',
    networkConfig: { api: `${specs}/v1`, logEventUrl: `${relay}/rgstr`, sdkExceptionUrl: `${specs}/v1/sdk_exception` },
    ...options,
  });
  client.dataAdapter.setData(JSON.stringify(BOOTSTRAP));
  client.initializeSync({ disableBackgroundCacheRefresh: true });
  client.checkGate('a_gate');
  client.getDynamicConfig('a_config');
  client.getLayer('a_layer').get('size');
  for (const { name, value, metadata } of events) client.logEvent(name, value, metadata);
  await client.flush();
  await client.shutdown();
}
